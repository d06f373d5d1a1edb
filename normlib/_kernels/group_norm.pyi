from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def group_norm_forward(
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
def group_norm_plain(
    x: ArrayLike,
    groups: int | None,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    channel_axis: int,
    eps: float,
    out: NDArray[Any] | None,
    statistics: bool,
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[np.float64] | None, NDArray[np.float64] | None] | None: ...
def row_function(single: bool) -> object: ...
def affine_function(single: bool) -> object: ...
