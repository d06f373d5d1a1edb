from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def group_norm_backward(
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
def group_norm_backward_plain(
    dy: ArrayLike,
    x: ArrayLike,
    groups: int | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    channel_axis: int,
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any]] | None: ...
def row_function(single: bool) -> object: ...
def affine_function(single: bool) -> object: ...
