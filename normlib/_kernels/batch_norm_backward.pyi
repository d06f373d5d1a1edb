from typing import Any

import numpy as np
from numpy.typing import NDArray

def batch_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    gain: NDArray[Any] | None,
    counted: NDArray[np.bool_] | None,
    n: int,
    factors: NDArray[Any],
    doubles: NDArray[np.intp],
    scratch: NDArray[np.float64],
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    dbias: NDArray[Any],
    n_threads: int,
) -> None: ...
