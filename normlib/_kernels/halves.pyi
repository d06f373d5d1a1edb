from typing import Any

import numpy as np
from numpy.typing import NDArray

def widen(x: NDArray[np.uint16], y: NDArray[Any], n: int, brain: bool, n_threads: int) -> None: ...
def narrow(x: NDArray[Any], y: NDArray[np.uint16], n: int, brain: bool, n_threads: int) -> None: ...
