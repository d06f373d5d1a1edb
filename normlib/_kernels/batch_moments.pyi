from typing import Any

import numpy as np
from numpy.typing import NDArray

def scratch_shape(outer: int, channels: int, inner: int) -> tuple[int, int, int]: ...
def batch_moments(
    x: NDArray[Any],
    scratch: NDArray[np.float64],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64],
    var: NDArray[np.float64],
    rstd: NDArray[np.float64],
    eps: float,
    n_threads: int,
) -> None: ...
