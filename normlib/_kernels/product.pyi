from typing import Any

from numpy.typing import NDArray

class Packed:
    K: int
    N: int

def pack(b: NDArray[Any]) -> Packed: ...
def product(a: NDArray[Any], packed: Packed, out: NDArray[Any], n_threads: int) -> None: ...
def add_gradient(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any], n_threads: int) -> None: ...
