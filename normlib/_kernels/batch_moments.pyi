from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_shape(outer: int, channels: int, inner: int) -> tuple[int, int, int]: ...
def batch_moments(
    x: NDArray[Any],
    outer: int,
    channels: int,
    inner: int,
    eps: float,
    n_threads: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def mix_running(
    running: NDArray[np.float64], new: NDArray[np.float64], weights: NDArray[np.float64]
) -> None: ...
