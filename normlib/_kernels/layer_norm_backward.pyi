from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def scratch_shape(n_rows: int, n: int) -> tuple[int, int, int]: ...
def layer_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    gain: NDArray[Any] | None,
    mean: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    dtotal: NDArray[Any] | None,
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    dbias: NDArray[Any],
    n_threads: int,
) -> None: ...
def layer_norm_backward_plain(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    dtotal: ArrayLike | None,
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]] | None: ...
def row_function(single: bool) -> object: ...
