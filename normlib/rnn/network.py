"""What a recurrent network is made of and what it has learned: configuration, parameters, state.

Everything that is saved, loaded or shown. What a network computes is in `runtime`.
"""

import contextlib
import functools
import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from normlib.arrays import check_dtype
from normlib.errors import (
    DuplicateNormalizerError,
    PluginError,
    StateError,
    UnknownNormalizerError,
)
from normlib.normalizers.arguments import check_config
from normlib.normalizers.base import Normalizer
from normlib.registry import NormalizerLike, registered_name, resolve
from normlib.rnn import checkpoint
from normlib.rnn.architecture import Architecture
from normlib.rnn.arguments import Array, check_generator, check_norm_config
from normlib.rnn.layers import Layers
from normlib.rnn.parameters import Normalizers, Parameters
from normlib.rnn.sites import check_factory, create_normalizer

__all__ = ["Network"]


class Network:
    """The base of `RNN`, which has the documentation of arguments and attributes."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell: str = "lstm",
        norm: NormalizerLike = "layer",
        num_layers: int = 1,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        reset_after: bool = True,
        norm_config: Mapping[str, Any] | None = None,
        rng: int | np.random.Generator | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self._architecture = Architecture(
            input_size,
            hidden_size,
            cell,
            num_layers,
            bidirectional,
            nonlinearity,
            reset_after,
            check_dtype(dtype),
        )
        self.input_size = self._architecture.input_size
        self.hidden_size = self._architecture.hidden_size
        self.cell = self._architecture.cell
        self.num_layers = self._architecture.num_layers
        self.bidirectional = self._architecture.bidirectional
        self.nonlinearity = self._architecture.nonlinearity
        self.reset_after = self._architecture.reset_after
        self.dtype = self._architecture.dtype
        self.norm: NormalizerLike = "noop" if norm is None else norm
        self.norm_config = check_norm_config(norm_config)
        factory = resolve(self.norm)
        check_factory(factory, self.norm_config)
        create = functools.partial(create_normalizer, factory, self.norm_config, self.dtype)
        generator = check_generator(rng)
        self._layers = Layers(self._architecture, create, generator)
        self._directions = self._layers.directions
        normalizers: dict[str, Normalizer] = {}
        entries: dict[str, tuple[Any, str]] = {}
        for one in self._directions:
            normalizers.update(one.normalizers)
            entries.update({name: (one, name) for name in one.parameters})
            for site, normalizer in one.normalizers.items():
                entries.update(
                    {f"{site}.{key}": (normalizer, key) for key in normalizer.parameters}
                )
        self.parameters = Parameters(entries)
        self.normalizers = Normalizers(normalizers)

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return self._architecture.num_directions

    @property
    def output_size(self) -> int:
        """Features of y: directions · H."""
        return self._architecture.output_size

    def __repr__(self) -> str:
        config = self.get_config()
        sizes = f"{config.pop('input_size')}, {config.pop('hidden_size')}"
        options = "".join(f", {key}={value!r}" for key, value in config.items())
        return f"RNN({sizes}{options})"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal network, save for its weights.

        The normalizer is given by its registered name. If the name is none, or by now that of
        another class, it is the class; and a factory is given as it is.
        """
        norm = self.norm
        if isinstance(norm, str | type):
            norm = type(next(iter(self.normalizers.values())))
            with contextlib.suppress(UnknownNormalizerError, DuplicateNormalizerError, PluginError):
                norm = registered_name(norm)
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "cell": self.cell,
            "norm": norm,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "nonlinearity": self.nonlinearity,
            "reset_after": self.reset_after,
            "norm_config": dict(self.norm_config),
            "dtype": self.dtype.name,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a network from what `get_config` returned, with new weights.

        Raises
        ------
        StateError
            If `config` has a name that is no argument, or lacks one that must be there.
        DTypeError
            If it is not a mapping with strings as keys.
        """
        return cls(**check_config(cls, config, error=StateError, features_apart=False))

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters and of the normalizers' buffers, by name.

        A buffer's name is its site's and its own: ``norm_ih_l0.running_mean``.
        """
        return checkpoint.collect(self._directions)

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Set all parameters and buffers, in place. After an error nothing has changed.

        Parameters
        ----------
        state : mapping of str to array_like
            As `state_dict` returns it. Floating-point values may be float32 or float64.

        Raises
        ------
        StateError
            If entries are missing or unexpected, or have another shape; the message names all of
            them.
        DTypeError
            If only the type of entries is wrong.
        """
        checkpoint.restore(self._directions, state)

    def save(self, path: checkpoint.Path) -> None:
        """Write configuration and state to a file in the safetensors format.

        Parameters
        ----------
        path : str, bytes or path-like
            An existing file is replaced.

        Raises
        ------
        StateError
            If the normalizer has no registered name, by which `load` could find it, or the name has
            come to mean another class, or ``norm_config`` holds what JSON cannot.
        OSError
            If the file cannot be written, as ``open`` raises it.
        """
        config = self.get_config()
        if not isinstance(config["norm"], str):
            raise StateError(
                "to save a network, its normalizer must have a registered name; got "
                f"{config['norm']!r}, which has none or has lost it to another class. Register the "
                "class with @normlib.register(name), and create the network with norm=name"
            )
        checkpoint.write(path, config, self.state_dict())

    @classmethod
    def load(cls, path: checkpoint.Path) -> Self:
        """Make the network that `save` wrote to a file.

        Loading runs no code from the file. What the configuration says of the weights is compared
        with what the file holds before anything is allocated.

        Raises
        ------
        StateError
            If the file is not one that `save` wrote.
        UnknownNormalizerError, DuplicateNormalizerError, PluginError
            If its normalizer is not registered here, or cannot be had.
        OSError
            If the file cannot be read, as ``open`` raises it.
        """
        config, state = checkpoint.read(path)
        try:
            rnn = cls.from_config(config)
            rnn.load_state_dict(state)
        except (DuplicateNormalizerError, PluginError):
            raise
        except (TypeError, ValueError) as error:
            raise StateError(
                f"{os.fsdecode(path)} holds no network that this version can use: {error}"
            ) from error
        return rnn
