from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def layer_norm_forward(
    x: NDArray[Any],
    gain: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    eps: float,
    y: NDArray[Any],
    mean: NDArray[np.float64] | None,
    rstd: NDArray[np.float64] | None,
    n_threads: int,
) -> None: ...
def layer_norm_plain(
    x: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
    out: NDArray[Any] | None,
    threads_for: Callable[[int], int],
) -> NDArray[Any] | None: ...
def layer_norm_backward_scratch(n_rows: int, n: int) -> tuple[int, int, int]: ...
def layer_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    gain: NDArray[Any] | None,
    mean: NDArray[np.float64],
    rstd: NDArray[np.float64],
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    dbias: NDArray[Any],
    partial: NDArray[np.float64],
    n_threads: int,
) -> None: ...
