from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def reciprocal_std(var: NDArray[np.float64], rstd: NDArray[np.float64], eps: float) -> int: ...
def batch_norm_forward(
    x: NDArray[Any],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    gain: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    y: NDArray[Any],
    n_threads: int,
) -> None: ...
def batch_norm_plain(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    channel_axis: int,
    eps: float,
    out: NDArray[Any] | None,
    threads_for: Callable[[int], int],
) -> NDArray[Any] | None: ...
def batch_norm_forward_plain(
    x: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    channel_axis: int,
    eps: float,
    out: NDArray[Any] | None,
    moments: Callable[..., Any],
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]] | None: ...
def row_function(single: bool) -> object: ...
