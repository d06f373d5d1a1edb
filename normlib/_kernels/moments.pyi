from typing import Any

import numpy as np
from numpy.typing import NDArray

def moments(
    x: NDArray[Any], mean: NDArray[np.float64], var: NDArray[np.float64], n_threads: int
) -> None: ...
