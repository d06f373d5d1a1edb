from typing import Any

import numpy as np
from numpy.typing import NDArray

def group_columns_forward(
    x: NDArray[Any],
    groups: int,
    gain: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    eps: float,
    y: NDArray[Any],
    mean: NDArray[np.float64] | None,
    rstd: NDArray[np.float64] | None,
    n_threads: int,
) -> None: ...
