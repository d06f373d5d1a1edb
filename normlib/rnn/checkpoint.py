"""The state of a recurrent network by name, and in a file.

A file is in the safetensors format: the arrays of the state under their names, and in the metadata,
under "normlib.rnn", the configuration as JSON. Nothing in it is code, so loading runs none.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.arrays import as_array
from normlib.errors import DTypeError, ParameterError, StateError
from normlib.normalizers.base import Normalizer
from normlib.rnn.architecture import Architecture
from normlib.rnn.arguments import check_float
from normlib.rnn.direction import Direction

__all__ = ["Path", "collect", "read", "restore", "restored_on_error", "write"]

Array: TypeAlias = npt.NDArray[Any]

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

KEY = "normlib.rnn"
# The types that a file may hold, and their names in the format; NumPy does not have all of those.
DTYPES = {
    "bool": "BOOL", "float16": "F16", "float32": "F32", "float64": "F64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


def collect(directions: Iterable[Direction]) -> dict[str, Array]:
    """Return copies of all parameters and of the normalizers' buffers, by name."""
    state: dict[str, Array] = {}
    for direction in directions:
        state.update({name: array.copy() for name, array in direction.parameters.items()})
        for site, normalizer in direction.normalizers.items():
            for key, array in normalizer.state_dict().items():
                state[f"{site}.{key}"] = array
    return state


def restore(directions: Sequence[Direction], state: Mapping[str, npt.ArrayLike]) -> None:
    """Set all parameters and buffers in place, or nothing.

    Raises
    ------
    StateError
        If entries are missing or unexpected, or have another shape.
    DTypeError
        If nothing is wrong but the type of entries.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            "a state must be a mapping of names to arrays, as state_dict returns it; got "
            f"{type(state).__name__}"
        )
    own = collect(directions)
    new = {}
    faults = [f"{name} is missing" for name in own if name not in state]
    wrong_types = []
    for name, value in state.items():
        if name not in own:
            faults.append(f"{name} is unexpected")
            continue
        try:
            new[name] = _like(value, name, own[name].dtype)
        except DTypeError as error:
            wrong_types.append(str(error))
            continue
        if new[name].shape != own[name].shape:
            faults.append(f"{name} must have shape {own[name].shape}, got {new[name].shape}")
    if faults or wrong_types:
        error_type = StateError if faults else DTypeError
        listing = "; ".join(faults + wrong_types)
        raise error_type(f"the state does not fit this network: {listing}")
    normalizers = [normalizer for one in directions for normalizer in one.normalizers.values()]
    with restored_on_error(normalizers):
        for direction in directions:
            for site, normalizer in direction.normalizers.items():
                prefix = f"{site}."
                normalizer.load_state_dict(
                    {
                        name.removeprefix(prefix): array
                        for name, array in new.items()
                        if name.startswith(prefix)
                    }
                )
    for direction in directions:
        for name, target in direction.parameters.items():
            target[...] = new[name]


def _like(value: npt.ArrayLike, name: str, dtype: np.dtype[Any]) -> Array:
    """Return ``value`` as an array that can be copied to one of that dtype, or DTypeError."""
    if dtype in (np.float32, np.float64):
        return check_float(name, value, dtype)
    array = as_array(value, name)
    if array.dtype.kind not in ("iu" if dtype.kind in "iu" else dtype.kind):
        raise DTypeError(f"{name} must be {dtype}; got {array.dtype}")
    return array


@contextlib.contextmanager
def restored_on_error(normalizers: Iterable[Normalizer]) -> Iterator[None]:
    """Put the state of the normalizers back if the block does not succeed."""
    before = [(normalizer, normalizer.state_dict()) for normalizer in normalizers]
    try:
        yield
    except BaseException as error:
        for normalizer, state in before:
            try:
                normalizer.load_state_dict(state)
            except Exception as failure:  # one that was broken before; the others are put back
                error.add_note(f"the state of {normalizer!r} was not put back: {failure}")
        raise


def write(path: Path, config: Mapping[str, Any], state: Mapping[str, Array]) -> None:
    """Write a configuration and the arrays of a state.

    Raises
    ------
    StateError
        If the configuration cannot be written as JSON, or an array not at all.
    OSError
        If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    name = os.fsdecode(path)
    try:
        text = json.dumps(config, allow_nan=False, default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateError(
            f"a saved configuration must consist of numbers, strings, lists and dicts; norm_config "
            f"does not ({error})"
        ) from error
    arrays = {key: np.asarray(array, order="C") for key, array in state.items()}
    for key, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise StateError(f"a file can hold {', '.join(DTYPES)}; {key} is {array.dtype}")
    existed = os.path.exists(name)
    with open(name, "ab"):  # for its errors: save_file has one type for all
        pass
    try:
        save_file(arrays, name, metadata={KEY: text})
    except SafetensorError as error:
        if not existed:
            os.remove(name)
        raise OSError(f"cannot write {name}: {error}") from error


def _number(value: object) -> Any:
    """Return a NumPy scalar as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not one of them")


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `write` wrote, once the shapes are found to be those of the configuration.

    Raises
    ------
    StateError
        If the file was not written by `write`.
    OSError
        If the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fsdecode(path)
    with open(name, "rb"):  # for its errors: safe_open has others
        pass
    try:
        with safe_open(name, framework="np") as file:
            config = _read_config(name, file.metadata() or {})
            # keys() is all there is: the file is no mapping.
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            held = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in parts.items()}
            _check_held(name, config, held)
            arrays = {key: file.get_tensor(key) for key in parts}
    except SafetensorError as error:
        raise StateError(f"{name} is not a safetensors file: {error}") from error
    return config, arrays


def _read_config(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(metadata[KEY])
        if not isinstance(config, dict):
            raise ValueError(f"{config!r} is not an object")
    except (KeyError, ValueError, RecursionError) as error:
        raise StateError(
            f"{path} must have been written by RNN.save; its metadata has no configuration under "
            f"{KEY!r}"
        ) from error
    return config


def _check_steps(
    path: str, config: Mapping[str, Any], held: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """The same of batch normalization's statistics, whose size a setting gives."""
    settings = config.get("norm_config")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    if config.get("norm") != "batch" or not isinstance(steps, int):
        return
    shapes = {name: shape for name, (shape, _) in held.items() if name.endswith(".running_mean")}
    for name, shape in shapes.items() or {"running_mean": ()}.items():
        if shape[:1] != (steps,):
            raise StateError(
                f"{path} must hold {name} of {steps} time steps, as steps of its norm_config says; "
                f"got {f'shape {shape}' if shape else 'none'}. Save the network again, or put "
                "right steps in the file's metadata"
            )


def _check_held(
    path: str, config: Mapping[str, Any], held: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """Compare shapes and dtypes in a file with the configuration; neither is trusted."""
    try:
        names = [field.name for field in dataclasses.fields(Architecture)]
        architecture = Architecture(**{name: config[name] for name in names})
    except KeyError as error:
        raise StateError(f"{path} holds a configuration without {error}") from error
    except (ParameterError, DTypeError) as error:
        raise StateError(f"{path} holds a configuration out of range: {error}") from error
    for name, shape in architecture.shapes():
        if name not in held:
            raise StateError(f"{path} must hold {name}, by its configuration; it is missing")
        if held[name][0] != shape or held[name][1] not in ("F32", "F64"):
            raise StateError(
                f"{path} must hold {name} of shape {shape} in F32 or F64, by its configuration; "
                f"got {held[name][0]} in {held[name][1]}"
            )
    _check_steps(path, config, held)
    for name, (_, dtype) in held.items():
        if dtype not in DTYPES.values():
            raise StateError(f"{path} must hold only {', '.join(DTYPES)}; {name} is in {dtype}")
