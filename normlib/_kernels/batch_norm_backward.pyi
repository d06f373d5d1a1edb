from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def batch_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    gain: NDArray[Any] | None,
    counted: NDArray[np.bool_] | None,
    n: int,
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    dbias: NDArray[Any],
    n_threads: int,
) -> None: ...
def batch_norm_backward_plain(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gain: ArrayLike | None,
    channel_axis: int,
    eps: float,
    reciprocal_std: Callable[..., int],
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]] | None: ...
