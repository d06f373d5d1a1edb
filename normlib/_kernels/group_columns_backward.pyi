from typing import Any

import numpy as np
from numpy.typing import NDArray

def group_columns_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    groups: int,
    gain: NDArray[Any] | None,
    mean: NDArray[np.float64],
    rstd: NDArray[np.float64],
    dx: NDArray[Any],
    dgain: NDArray[np.float64],
    dbias: NDArray[np.float64],
    n_threads: int,
) -> None: ...
