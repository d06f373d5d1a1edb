from typing import Any

import numpy as np
from numpy.typing import NDArray

def reciprocal_std(var: NDArray[np.float64], rstd: NDArray[np.float64], eps: float) -> int: ...
def batch_norm_forward(
    x: NDArray[Any],
    mean: NDArray[np.float64],
    rest: NDArray[np.float64] | None,
    rstd: NDArray[np.float64],
    gain: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    factors: NDArray[Any],
    doubles: NDArray[np.intp],
    y: NDArray[Any],
    n_threads: int,
) -> None: ...
