from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_shape(outer: int, channels: int, inner: int) -> tuple[int, int, int]: ...
def batch_moments(
    x: NDArray[Any],
    scratch: NDArray[np.float64],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64],
    var: NDArray[np.float64],
    rstd: NDArray[np.float64],
    eps: float,
    n_threads: int,
) -> None: ...
def reciprocal_std(var: NDArray[np.float64], rstd: NDArray[np.float64], eps: float) -> int: ...
def batch_norm_forward(
    x: NDArray[Any],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    gain: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    factors: NDArray[Any],
    doubles: NDArray[np.intp],
    y: NDArray[Any],
    n_threads: int,
) -> None: ...
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
