from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def rms_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    gain: NDArray[Any] | None,
    rstd: NDArray[np.float64],
    dtotal: NDArray[Any] | None,
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    n_threads: int,
) -> None: ...
def rms_norm_backward_plain(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    dtotal: ArrayLike | None,
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any] | None] | None: ...
def row_function(single: bool) -> object: ...
