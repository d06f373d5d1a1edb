"""The state of a recurrent network by name, and in a file.

A file is in the safetensors format: the arrays of the state under their names, and in the metadata,
under "normlib.rnn", the configuration as JSON. Nothing in it is code, so loading runs none.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.errors import StateError
from normlib.normalizers.base import Normalizer
from normlib.rnn.direction import Direction

__all__ = ["collect", "read", "restore", "restored_on_error", "write"]

Array: TypeAlias = npt.NDArray[Any]

KEY = "normlib.rnn"


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
        If entries are missing or unexpected, or have another shape or type.
    """
    own = collect(directions)
    new = {name: np.asarray(array) for name, array in state.items()}
    faults = [f"{name} is missing" for name in own if name not in new]
    for name, array in new.items():
        if name not in own:
            faults.append(f"{name} is unexpected")
        elif array.shape != own[name].shape:
            faults.append(f"{name} must have shape {own[name].shape}, got {array.shape}")
        elif not np.can_cast(array.dtype, own[name].dtype, "same_kind"):
            faults.append(f"{name} must have dtype {own[name].dtype}, got {array.dtype}")
    if faults:
        raise StateError(f"the state does not fit this network: {'; '.join(faults)}")
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


@contextlib.contextmanager
def restored_on_error(normalizers: Iterable[Normalizer]) -> Iterator[None]:
    """Put the state of the normalizers back if the block does not succeed."""
    before = [(normalizer, normalizer.state_dict()) for normalizer in normalizers]
    try:
        yield
    except BaseException:
        for normalizer, state in before:
            normalizer.load_state_dict(state)
        raise


def write(
    path: str | os.PathLike[str], config: Mapping[str, Any], state: Mapping[str, Array]
) -> None:
    """Write a configuration and the arrays of a state.

    Raises
    ------
    StateError
        If the configuration cannot be written as JSON.
    """
    from safetensors.numpy import save_file

    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(
            f"a saved configuration must consist of numbers, strings, lists and dicts; got "
            f"{dict(config)!r} ({error})"
        ) from error
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    save_file(arrays, path, metadata={KEY: text})


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read what `write` wrote.

    Raises
    ------
    StateError
        If the file was not written by `write`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StateError(f"{os.fspath(path)} is not a safetensors file: {error}") from error
    try:
        config = json.loads(metadata[KEY])
        if not isinstance(config, dict):
            raise ValueError(f"{config!r} is not an object")
    except (KeyError, ValueError) as error:
        raise StateError(
            f"{os.fspath(path)} must have been written by RNN.save; its metadata has no "
            f"configuration under {KEY!r}"
        ) from error
    return config, arrays
