from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_shape(samples: int, channels: int, inner: int) -> tuple[int, int, int]: ...
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
    partial: NDArray[np.float64],
    n_threads: int,
) -> None: ...
def row_function(single: bool) -> object: ...
def affine_function(single: bool) -> object: ...
