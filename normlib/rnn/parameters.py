"""What a network is made of, by name: its parameters under one flat set, and its normalizers."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.errors import ShapeError, UnknownParameterError
from normlib.normalizers.arguments import did_you_mean
from normlib.normalizers.base import Normalizer
from normlib.rnn.arguments import check_float

__all__ = ["Normalizers", "Parameters"]

Array: TypeAlias = npt.NDArray[Any]


class Owner(Protocol):
    """What has parameters of its own, by name."""

    parameters: dict[str, Array]


class Parameters(MutableMapping[str, Array]):
    """Live arrays by name. To assign one is to copy its values, so that every owner sees them.

    Two are equal, and equal to a dict, if they have the same names and each array has the same
    shape and values; as in NumPy, NaN is not equal to itself.

    Parameters
    ----------
    entries : mapping of str to (owner, str)
        For each name, whose ``parameters`` holds the array, and under which key.

    Examples
    --------
    >>> from normlib.normalizers import LayerNorm
    >>> norm = LayerNorm(2)
    >>> parameters = Parameters({"norm_a_l0.gain": (norm, "gain")})
    >>> parameters["norm_a_l0.gain"] *= 3
    >>> parameters["norm_a_l0.gain"] is norm.parameters["gain"]
    True
    >>> norm.parameters["gain"]
    array([3., 3.], dtype=float32)
    """

    def __init__(self, entries: Mapping[str, tuple[Owner, str]]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Array:
        try:
            owner, key = self._entries[name]
        except KeyError:
            hint = did_you_mean(str(name), self._entries)
            raise UnknownParameterError(
                f"unknown parameter {name!r}.{hint} Known: {', '.join(map(repr, self._entries))}"
            ) from None
        return owner.parameters[key]

    def __setitem__(self, name: str, value: npt.ArrayLike) -> None:
        target = self[name]
        if value is target:  # the end of parameters[name] += ...
            return
        array = check_float(name, value, target.dtype)
        if array.shape != target.shape:
            raise ShapeError(f"{name} must have shape {target.shape}; got {array.shape}")
        target[...] = array

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"parameters are fixed by the model and cannot be removed; got {name!r}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(
            np.array_equal(array, other[name]) for name, array in self.items()
        )

    __hash__ = None  # type: ignore[assignment]  # values change

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return repr(dict(self))


class Normalizers(Mapping[str, Normalizer]):
    """Normalizers by the names of their sites, which the network has in other places, too.

    To put another into it would change nothing there, so it raises TypeError.

    Parameters
    ----------
    entries : mapping of str to Normalizer

    Examples
    --------
    >>> from normlib.normalizers import LayerNorm
    >>> Normalizers({"norm_a_l0": LayerNorm(2)})["norm_a_l0"].features
    2
    """

    def __init__(self, entries: Mapping[str, Normalizer]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Normalizer:
        return self._entries[name]

    def __setitem__(self, name: str, value: object) -> NoReturn:
        raise TypeError(
            f"normalizers are fixed by the model and cannot be replaced; got {name!r}. Create the "
            "network with another norm, or change parameters in place"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return repr(self._entries)
