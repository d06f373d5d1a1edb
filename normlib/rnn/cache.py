"""What a network keeps of `RNN.forward` for `RNN.backward`, and which networks it fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from normlib.errors import DTypeError, ParameterError
from normlib.normalizers.base import Normalizer
from normlib.rnn.architecture import Architecture
from normlib.rnn.direction import AnyCache

__all__ = ["Cache", "signature"]


def signature(architecture: Architecture, normalizers: Mapping[str, Normalizer]) -> dict[str, Any]:
    """Return, by name, what must be the same in two networks that can use each other's caches.

    For each site it is the class of the normalizer and the names of its parameters.
    """
    sites = {
        name: (type(normalizer), *normalizer.parameters) for name, normalizer in normalizers.items()
    }
    return {**vars(architecture), **sites}


@dataclass(frozen=True)
class Cache:
    """What `RNN.backward` needs of `RNN.forward`; its own memory, independent of later calls.

    ``signature`` tells what its arrays fit, ``shape`` is (T, N).
    """

    signature: dict[str, Any]
    shape: tuple[int, int]
    directions: list[AnyCache]

    @classmethod
    def checked(cls, cache: object, own: Mapping[str, Any]) -> Self:
        """Return ``cache`` if it fits a network of that signature.

        Raises
        ------
        DTypeError
            If it is something else.
        ParameterError
            If it comes from another network.
        """
        if not isinstance(cache, cls):
            raise DTypeError(
                "cache must be what forward returned as the third of its results; "
                f"got {type(cache).__name__}"
            )
        if cache.signature == own:
            return cache
        for name in {**own, **cache.signature}:
            theirs = cache.signature.get(name)
            if theirs != own.get(name):
                raise ParameterError(
                    "cache must come from forward of this network, or of one of the same "
                    f"architecture and normalizers; its {name} is {theirs!r}, this network's "
                    f"{own.get(name)!r}. Pass the cache that forward of this network returned"
                )
        return cache
