from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_shape(n_rows: int, n: int) -> tuple[int, int]: ...
def rms_norm_backward(
    dy: NDArray[Any],
    x: NDArray[Any],
    gain: NDArray[Any] | None,
    rstd: NDArray[np.float64],
    dx: NDArray[Any],
    dgain: NDArray[Any] | None,
    partial: NDArray[np.float64] | None,
    n_threads: int,
) -> None: ...
def row_function(single: bool) -> object: ...
