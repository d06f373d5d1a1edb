from typing import Any

from numpy.typing import NDArray

def same_bits(
    ones: tuple[NDArray[Any] | None, ...], others: tuple[NDArray[Any] | None, ...]
) -> bool: ...
def same_normalizers(owners: tuple[Any, ...]) -> bool: ...
