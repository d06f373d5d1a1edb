"""What a normalizer is made of and what it has learned: configuration, parameters, buffers.

Everything that is saved, loaded, copied or shown. What a normalizer computes is in `base`.
"""

import copy
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from normlib.arrays import (
    MAX_SIZE,
    Array,
    as_array,
    as_dtype,
    as_integer,
    check_dtype,
    check_eps,
    required_like,
)
from normlib.errors import DTypeError, ParameterError, ShapeError, StateError
from normlib.normalizers.arguments import check_config

__all__ = ["Stateful"]


def _as_flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ParameterError(
        f"{name} says whether there is one and must be True or False; got {value!r} "
        f"(its values are set afterwards, in parameters[{name!r}])"
    )


class Stateful:
    """The base of `Normalizer`, which has the documentation of arguments and attributes."""

    features: int
    eps: float
    dtype: np.dtype[Any]
    parameters: dict[str, Array]
    buffers: dict[str, Array]

    def __init__(
        self,
        features: int,
        *,
        gain: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.features = as_integer("features", features, minimum=1, maximum=MAX_SIZE)
        self.eps = check_eps(eps)
        self.dtype = check_dtype(dtype)
        self.parameters = {}
        if _as_flag("gain", gain):
            self.parameters["gain"] = np.ones(self.features, self.dtype)
        if _as_flag("bias", bias):
            self.parameters["bias"] = np.zeros(self.features, self.dtype)
        self.buffers = {}

    def __repr__(self) -> str:
        config = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({config})"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal normalizer, ready for JSON.

        A subclass whose ``__init__`` takes more adds to it:
        ``return {**super().get_config(), "groups": self.groups}``.
        """
        return {
            "features": self.features,
            "gain": "gain" in self.parameters,
            "bias": "bias" in self.parameters,
            "eps": self.eps,
            "dtype": self.dtype.name,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a normalizer from what `get_config` returned.

        Raises
        ------
        StateError
            If `config` has a name that the class does not take, or lacks one (a ``ValueError``).
        DTypeError
            If it is not a mapping with strings as keys (a ``TypeError``).
        """
        return cls(**check_config(cls, config, error=StateError, features_apart=False))

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and buffers, by name."""
        return {key: np.array(array) for key, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Set all parameters and buffers, in place.

        All or nothing: everything is checked before anything changes.

        Parameters
        ----------
        state : mapping of str to array_like
            As `state_dict` returns it.

        Raises
        ------
        StateError
            If names are missing or unexpected, or it is no mapping (a ``ValueError``).
        ShapeError
            If an array has another shape.
        DTypeError
            If an array is of another kind, such as complex, or a masked one.
        """
        if not isinstance(state, Mapping):
            raise StateError(
                "a state must be a mapping of names to arrays, as state_dict returns it; got "
                f"{type(state).__name__}"
            )
        own = self._state()
        missing = sorted(own.keys() - state.keys())
        unexpected = sorted(state.keys() - own.keys(), key=str)
        if missing or unexpected:
            raise StateError(
                f"state must have exactly the entries {sorted(own)}; "
                f"missing: {missing or 'none'}, unexpected: {unexpected or 'none'}"
            )
        new = {}
        for key, target in own.items():
            array = as_array(state[key], key)
            if array.shape != target.shape:
                raise ShapeError(f"{key} must have shape {target.shape}; got {array.shape}")
            if not np.can_cast(array.dtype, target.dtype, "same_kind"):
                raise DTypeError(f"{key} must be castable to {target.dtype}; got {array.dtype}")
            new[key] = as_dtype(array, target.dtype).copy()  # may be one of this state's own arrays
        for key, target in own.items():
            target[...] = new[key]

    def population_twin(self) -> Self:
        """Return a normalizer of the same parameters to take statistics of a whole training set.

        Its ``forward`` is called with each batch of the set, and then `take_population` with it.
        The state of this normalizer stays what it is meanwhile.

        Returns
        -------
        twin : Normalizer
            This very one if it has no `buffers`, as there is nothing to take. Else a copy whose
            buffers are those of a new normalizer: where ``forward`` does not weigh all batches
            alike, as an exponential average does, a subclass overrides this method.
        """
        if not self.buffers:
            return self
        twin = copy.deepcopy(self)
        for key, array in type(self).from_config(self.get_config()).buffers.items():
            twin.buffers[key][...] = array
        return twin

    def take_population(self, twin: Self) -> None:
        """Take the buffers of what `population_twin` returned, in place.

        Parameters
        ----------
        twin : Normalizer
            It has seen a whole training set.
        """
        for key, array in self.buffers.items():
            array[...] = twin.buffers[key]

    def _parameter(self, name: str) -> Array | None:
        """Return a parameter of shape (F,) as a method computes with it; None if there is none.

        Raises
        ------
        ShapeError, DTypeError
            If somebody has put something else in its place.
        """
        if name not in self.parameters:
            return None
        array = self.parameters[name]
        shape = (self.features,)
        if type(array) is np.ndarray and array.dtype is self.dtype and array.shape == shape:
            return array
        try:
            return required_like(array, name, shape, self.dtype, "the features")
        except (ShapeError, DTypeError) as error:
            got = getattr(array, "dtype", type(array).__name__)
            if isinstance(array, np.ma.MaskedArray):
                got = f"masked {got}"
            raise type(error)(
                f"parameters[{name!r}] must be a plain array of floats of shape {shape}; got "
                f"{got} of shape {np.shape(array)}. Write values into the array that was there, as "
                f"in parameters[{name!r}][...] = 1, or put one of that shape and {self.dtype} there"
            ) from None

    def _state(self) -> dict[str, Array]:
        return {**self.parameters, **self.buffers}
