"""Checks of what a caller gives to a network."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.arrays import as_array, as_dtype, as_float
from normlib.errors import DTypeError, ParameterError, ShapeError
from normlib.normalizers.base import Normalizer

__all__ = [
    "State",
    "check_flag",
    "check_float",
    "check_generator",
    "check_lengths",
    "check_norm_config",
    "check_rows",
    "check_state",
]

# Lengths that are checked faster as a list than as an array.
SHORT_LENGTHS = 64

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = Array | tuple[Array, ...]


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ParameterError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_float(name: str, value: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    """Return ``value`` as an aligned, C-contiguous array of that dtype; itself if it is one."""
    return as_dtype(as_float(value, name), dtype)


def check_norm_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return ``norm_config`` as a dict.

    Raises
    ------
    DTypeError
        If it is not a mapping with strings as keys.
    ParameterError
        If it has a key that is the network's to set.
    """
    if config is None:
        return {}
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise DTypeError(
            "norm_config must be a mapping of names to values, such as {'eps': 1e-6}; "
            f"got {config!r}"
        )
    taken = sorted(config.keys() & {"features", "bias", "dtype"})
    if taken:
        raise ParameterError(
            f"norm_config must not contain {', '.join(map(repr, taken))}, which the RNN sets for "
            "each site; remove it"
        )
    return dict(config)


def check_generator(rng: Any) -> np.random.Generator:
    """Return a random generator made from ``rng``, or itself."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise ParameterError(
            "rng must be an integer of at least 0, a numpy.random.Generator, or None for other "
            f"weights each time; got {rng!r}"
        ) from None


def check_lengths(lengths: npt.ArrayLike | None, n_steps: int, n_batch: int) -> Array | None:
    """Return ``lengths`` as an array of integers, or None if no row is shorter than T.

    Raises
    ------
    DTypeError
        If they are not integers.
    ShapeError
        If they are not one per row of the batch.
    ParameterError
        If one is negative or more than T.
    """
    if lengths is None:
        return None
    if type(lengths) is np.ndarray and lengths.dtype == np.intp and lengths.shape == (n_batch,):
        values = lengths.tolist() if 0 < n_batch <= SHORT_LENGTHS else [-1]
        shortest = min(values)
        if shortest >= 0 and max(values) <= n_steps:
            return None if shortest == n_steps else np.array(values, np.intp)
    array = as_array(lengths, "lengths")
    if array.shape != (n_batch,):
        raise ShapeError(
            f"lengths must have shape ({n_batch},), one per row of the batch; got {array.shape}"
        )
    if array.dtype.kind not in "iu" and array.size:
        raise DTypeError(f"lengths must be integers; got dtype {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array > n_steps))
    if bad.size:
        row = int(bad[0])
        raise ParameterError(
            f"lengths must be between 0 and T = {n_steps}; got {array[row]} for row {row}"
        )
    array = array.astype(np.intp)
    return None if np.all(array == n_steps) else array


def check_rows(
    name: str,
    shape: tuple[int, ...],
    lengths: Array | None,
    normalizers: Mapping[str, Normalizer],
) -> None:
    """Refuse a batch with fewer valid rows than a normalizer takes its statistics of.

    ``name`` is the method, ``shape`` that of x.

    Raises
    ------
    ShapeError
        If there are fewer. A row is valid if it has a valid time step.
    """
    n_steps, n_batch = shape[:2]
    n_rows = n_batch if n_steps else 0
    if lengths is not None:
        n_rows = int(np.count_nonzero(lengths))
    for site, normalizer in normalizers.items():
        if n_rows < normalizer.min_rows:
            raise ShapeError(
                f"{name} must be given at least {normalizer.min_rows} rows with a valid time step, "
                f"of which {type(normalizer).__name__} at {site} takes its statistics; got "
                f"{n_rows} in x of shape {shape}. Use a larger batch, or call the network itself, "
                "which has running statistics"
            )


def check_state(
    name: str,
    state: State | None,
    carries: Sequence[str],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
) -> list[Array]:
    """Return the arrays of a state, one for each name in ``carries``; zeros for None.

    Raises
    ------
    DTypeError
        If an array is neither float32 nor float64.
    ShapeError
        If an array has another shape, or there are more or fewer of them.
    """
    if state is None:
        return [np.zeros(shape, dtype) for _ in carries]
    if len(carries) == 1:
        parts: Sequence[npt.ArrayLike] = (state,)
        labels = [name]
    elif isinstance(state, tuple | list) and len(state) == len(carries):
        parts = state
        labels = [f"{name}[{place}]" for place in range(len(carries))]
    else:
        raise ShapeError(
            f"{name} must be a tuple ({', '.join(carries)}) of arrays of shape {shape}; "
            f"got {_describe(state)}"
        )
    arrays = []
    for label, part in zip(labels, parts, strict=True):
        array = check_float(label, part, dtype)
        if array.shape != shape:
            raise ShapeError(
                f"{label} must have shape {shape}, (layers · directions, N, H); got {array.shape}"
            )
        arrays.append(array)
    return arrays


def _describe(state: object) -> str:
    if isinstance(state, np.ndarray):
        return f"an array of shape {state.shape}"
    if isinstance(state, tuple | list):
        return f"{len(state)} arrays"
    return type(state).__name__
