"""Recurrent networks over layers and directions, with a normalizer at every time step."""

import contextlib
import functools
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.errors import (
    ParameterError,
    PluginError,
    ShapeError,
    StateError,
    UnknownNormalizerError,
)
from normlib.normalizers.base import Normalizer, as_integer
from normlib.registry import NormalizerFactory, NormalizerLike, registered_name, resolve
from normlib.rnn import checkpoint, direction
from normlib.rnn.arguments import (
    State,
    check_dtype,
    check_flag,
    check_float,
    check_lengths,
    check_state,
)
from normlib.rnn.cells import create_cell
from normlib.rnn.direction import Direction
from normlib.rnn.parameters import Parameters
from normlib.rnn.sequence import Schedule

__all__ = ["RNN"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Cache:
    """What `RNN.backward` needs of `RNN.forward`; its own memory, independent of later calls."""

    shape: tuple[int, int]
    directions: list[direction.Cache]


class RNN:
    r"""A recurrent network: vanilla, GRU or LSTM, with any normalizer at every time step.

    In the LSTM, gates in the order i, f, g, o,

    .. math::
        a_t &= N_{ih}(W_{ih} x_t) + b_{ih} + N_{hh}(W_{hh} h_{t-1}) + b_{hh} \\
        c_t &= σ(f) ⊙ c_{t-1} + σ(i) ⊙ \tanh(g) \\
        h_t &= σ(o) ⊙ \tanh(N_c(c_t))

    where each N is a normalizer with a gain, followed by the cell's biases. `normlib.rnn.cells` has
    the other cells, and where implementations disagree. Without a normalizer the network computes
    what PyTorch's ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` do.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    cell : {"lstm", "gru", "rnn"}, default "lstm"
        What a time step computes.
    norm : str, class, callable or None, default "layer"
        The normalizer: a registered name, a `Normalizer` class, or a factory
        ``f(features, **config)``. None means "noop".
    num_layers : int, default 1
        Layers; each reads the output of the one below.
    bidirectional : bool, default False
        Whether each layer also runs backwards in time.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        Of the cell "rnn".
    reset_after : bool, default True
        Of the cell "gru": whether the reset comes after the product with h, as in PyTorch, or
        before it, as in the classical GRU.
    norm_config : mapping, optional
        Passed to every normalizer, such as ``{"eps": 1e-6}``. ``bias`` and ``dtype`` are the RNN's.
    rng : int, numpy.random.Generator or None, default None
        Draws the weights, uniform in ±1/sqrt(H). Biases start at 0; gains at the normalizer's
        ``rnn_gain``.
    dtype : {float32, float64}, default float32
        Of parameters, computation and results. Floating-point input is cast to it.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        All parameters as live arrays, under PyTorch's names (``weight_ih_l0``,
        ``bias_hh_l1_reverse``) and those of the sites (``norm_ih_l0.gain``). To assign one is to
        copy values into it.
    normalizers : dict of str to Normalizer
        By site: ``norm_ih_l0``, ``norm_hh_l0``; LSTM ``norm_c_l0``; vanilla ``norm_a_l0`` alone;
        GRU also ``norm_in_l0``, ``norm_hn_l0``; with suffix ``_reverse`` for the reverse direction.

    Raises
    ------
    ParameterError, DTypeError
        If an argument is outside its range, or of another type.
    UnknownNormalizerError
        If no normalizer has that name.

    Notes
    -----
    *Shapes.* x is (T, N, I) and y (T, N, directions · H). A state is h, of shape
    (layers · directions, N, H), each layer's directions in turn; for the LSTM it is the tuple
    (h, c) of two such arrays.

    *Lengths.* Rows may be shorter than T: ``lengths`` gives the valid time steps of each, from 0 to
    T, in any order. Padded time steps are not read and not computed, and do not count in batch
    statistics. Their y is zero, the final state is that of the last valid time step, and the
    reverse direction starts there.

    *Steps.* A normalizer is told the number of the time step in the order of processing. At a step
    with fewer valid rows than it needs for its statistics (two, for batch normalization), it takes
    its running statistics as constants and leaves them as they are.

    *Errors* in a normalizer carry a note with the layer and the time step, counted from 0 in the
    order of processing.

    *Reproducible.* With a normalizer that works per sample, an output row has the same bits in
    every batch, with any number of threads, and by `step`.

    *Threads.* Inference only reads, so one instance may infer in many threads at once, as long as
    its normalizers may. ``forward`` may update running statistics, and is for one thread at a time.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450. T. Cooijmans et
    al., "Recurrent Batch Normalization", arXiv:1603.09025.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> rnn = normlib.RNN(3, 4, cell="gru", norm="layer", rng=0)
    >>> x = np.random.default_rng(0).standard_normal((5, 2, 3))
    >>> y, h = rnn(x)
    >>> y.shape, h.shape
    ((5, 2, 4), (1, 2, 4))
    >>> y, h, cache = rnn.forward(x)
    >>> dx, dh, grads = rnn.backward(np.ones_like(y), cache)
    >>> grads["norm_ih_l0.gain"].shape
    (8,)
    >>> for name, gradient in grads.items():
    ...     rnn.parameters[name] -= 0.1 * gradient
    """

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
        self.input_size = as_integer("input_size", input_size, minimum=1)
        self.hidden_size = as_integer("hidden_size", hidden_size, minimum=1)
        self.num_layers = as_integer("num_layers", num_layers, minimum=1)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.cell = cell
        self.nonlinearity = nonlinearity
        self.reset_after = check_flag("reset_after", reset_after)
        self.norm: NormalizerLike = "noop" if norm is None else norm
        self.norm_config = dict(norm_config or {})
        self.dtype = check_dtype(dtype)
        self._cell = create_cell(cell, self.hidden_size, nonlinearity, self.reset_after)
        taken = sorted(self.norm_config.keys() & {"features", "bias", "dtype"})
        if taken:
            raise ParameterError(
                f"norm_config must not contain {', '.join(map(repr, taken))}, which the RNN sets "
                "for each site; remove it"
            )
        generator = np.random.default_rng(rng)
        create = functools.partial(self._create_normalizer, resolve(self.norm))
        self._layers = [
            [
                Direction(
                    self._cell,
                    self.input_size if layer == 0 else self.output_size,
                    f"_l{layer}{suffix}",
                    create,
                    generator,
                    self.dtype,
                )
                for suffix in ("", "_reverse")[: self.num_directions]
            ]
            for layer in range(self.num_layers)
        ]
        self.normalizers: dict[str, Normalizer] = {}
        entries: dict[str, tuple[Any, str]] = {}
        self._directions = list(itertools.chain(*self._layers))
        for one in self._directions:
            self.normalizers.update(one.normalizers)
            entries.update({name: (one, name) for name in one.parameters})
            for site, normalizer in one.normalizers.items():
                entries.update(
                    {f"{site}.{key}": (normalizer, key) for key in normalizer.parameters}
                )
        self.parameters = Parameters(entries)

    def _create_normalizer(
        self, factory: NormalizerFactory, features: int, *, bias: bool
    ) -> Normalizer:
        normalizer = factory(features, bias=bias, dtype=self.dtype, **self.norm_config)
        if normalizer.features != features or normalizer.dtype != self.dtype:
            raise PluginError(
                f"norm must make normalizers of {features} features and dtype {self.dtype}, as it "
                f"was asked to; got {normalizer!r}"
            )
        return normalizer

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of y: directions · H."""
        return self.num_directions * self.hidden_size

    def __repr__(self) -> str:
        config = self.get_config()
        sizes = f"{config.pop('input_size')}, {config.pop('hidden_size')}"
        options = "".join(f", {key}={value!r}" for key, value in config.items())
        return f"RNN({sizes}{options})"

    # ---- running ------------------------------------------------------------------------------

    def __call__(
        self,
        x: npt.ArrayLike,
        state: State | None = None,
        lengths: npt.ArrayLike | None = None,
    ) -> tuple[Array, State]:
        """Run for inference.

        Parameters
        ----------
        x : array_like, shape (T, N, I)
            Floating-point values.
        state : ndarray or tuple of ndarray, optional
            The initial state, shaped as in the class's notes; zero if not given.
        lengths : array_like of int, shape (N,), optional
            Valid time steps of each row; all T if not given.

        Returns
        -------
        y : ndarray, shape (T, N, directions · H)
            The output of the last layer; zero at padded time steps.
        state : ndarray or tuple of ndarray
            The state after the last valid time step.

        Raises
        ------
        ShapeError, DTypeError, ParameterError
            If an argument has another shape or type, or a length is outside 0 to T.
        """
        x, initial, lengths = self._check(x, state, lengths)
        y, final, _ = self._run(x, initial, lengths, training=False)
        return y, self._join_state(final)

    def forward(
        self,
        x: npt.ArrayLike,
        state: State | None = None,
        lengths: npt.ArrayLike | None = None,
    ) -> tuple[Array, State, Cache]:
        """Run for training: normalizers use, and update, the statistics of the batch.

        Parameters are those of ``__call__``.

        Returns
        -------
        y, state
            As ``__call__``.
        cache : object
            For `backward`. It holds copies of all it needs, so that x, y and the parameters may
            change before `backward`, which differentiates what was computed here.

        Raises
        ------
        ShapeError, DTypeError, ParameterError
            As ``__call__``. After any error the running statistics are what they were.
        """
        x, initial, lengths = self._check(x, state, lengths)
        with checkpoint.restored_on_error(self.normalizers.values()):
            y, final, caches = self._run(x.copy(), initial, lengths, training=True)
        return y, self._join_state(final), Cache(x.shape[:2], caches)

    def step(
        self, x: npt.ArrayLike, state: State | None = None, *, step: int = 0
    ) -> tuple[Array, State]:
        """Run one time step for inference, for data that arrives step by step.

        The result has the same bits as that time step of ``__call__``.

        Parameters
        ----------
        x : array_like, shape (N, I)
            The input of the time step.
        state : ndarray or tuple of ndarray, optional
            As the last call returned it; zero if not given.
        step : int, default 0
            The number of the time step, for normalizers with statistics for each.

        Returns
        -------
        y : ndarray, shape (N, H)
        state : ndarray or tuple of ndarray

        Raises
        ------
        ParameterError
            If the network is bidirectional, as its output depends on time steps to come; or if
            `step` is negative.
        ShapeError, DTypeError
            As ``__call__``.
        """
        if self.bidirectional:
            raise ParameterError(
                "step needs a network that only looks back: create it with bidirectional=False, or "
                "call it with the whole sequence"
            )
        first = as_integer("step", step, minimum=0)
        array = check_float("x", x, self.dtype)
        if array.ndim != 2 or array.shape[1] != self.input_size:
            raise ShapeError(f"x must have shape (N, {self.input_size}); got {array.shape}")
        array, initial, _ = self._check(array[np.newaxis], state, None)
        y, final, _ = self._run(array, initial, None, training=False, first_step=first)
        return y[0], self._join_state(final)

    def backward(
        self, dy: npt.ArrayLike, cache: Cache, dstate: State | None = None
    ) -> tuple[Array, State, dict[str, Array]]:
        """Propagate gradients back through time.

        Pure: neither the network nor the cache changes, and it may be called again.

        Parameters
        ----------
        dy : array_like, shape (T, N, directions · H)
            The gradient of a loss with respect to y; ignored at padded time steps.
        cache : object
            From `forward`.
        dstate : ndarray or tuple of ndarray, optional
            The gradient with respect to the final state; zero if not given.

        Returns
        -------
        dx : ndarray, shape (T, N, I)
            The gradient with respect to x; zero at padded time steps.
        dstate : ndarray or tuple of ndarray
            The gradient with respect to the initial state.
        grads : dict of str to ndarray
            The gradients with respect to `parameters`, under the same names.

        Raises
        ------
        ShapeError, DTypeError
            If `dy` or `dstate` does not fit what `forward` returned.
        """
        n_steps, n_batch = cache.shape
        d_output = check_float("dy", dy, self.dtype)
        shape = (n_steps, n_batch, self.output_size)
        if d_output.shape != shape:
            raise ShapeError(f"dy must have the shape of y, {shape}; got {d_output.shape}")
        d_final = self._check_state("dstate", dstate, n_batch)
        d_initial = [np.empty_like(array) for array in d_final]
        grads: dict[str, Array] = {}
        place = len(cache.directions)
        for layer in reversed(self._layers):
            d_input = np.zeros((n_steps, n_batch, layer[0].input_size), self.dtype)
            for index, one in reversed(list(enumerate(layer))):
                place -= 1
                kept = cache.directions[place]
                schedule = kept.schedule
                d_rows, d_state, d_parameters = one.backward(
                    schedule.gather(self._part(d_output, index)),
                    tuple(schedule.sort(array[place]) for array in d_final),
                    kept,
                )
                d_input += schedule.scatter(d_rows)
                for array, rows in zip(d_initial, d_state, strict=True):
                    schedule.unsort(rows, array[place])
                grads.update(d_parameters)
            d_output = d_input
        ordered = {name: grads[name] for name in self.parameters}
        return d_output, self._join_state(d_initial), ordered

    def _run(
        self,
        x: Array,
        initial: list[Array],
        lengths: Array | None,
        *,
        training: bool,
        first_step: int = 0,
    ) -> tuple[Array, list[Array], list[direction.Cache]]:
        n_steps, n_batch = x.shape[:2]
        schedules = [Schedule(n_steps, n_batch, lengths, reverse=False)]
        if self.bidirectional:
            schedules.append(Schedule(n_steps, n_batch, lengths, reverse=True))
        final = [np.empty_like(array) for array in initial]
        caches: list[direction.Cache] = []
        place = 0
        for layer in self._layers:
            y = np.empty((n_steps, n_batch, self.output_size), self.dtype)
            for index, (one, schedule) in enumerate(zip(layer, schedules, strict=True)):
                rows = schedule.gather(x)
                state = tuple(schedule.sort(array[place]) for array in initial)
                if training:
                    h, state, cache = one.forward(rows, state, schedule)
                    caches.append(cache)
                else:
                    h, state = one.infer(rows, state, schedule, first_step)
                self._part(y, index)[...] = schedule.scatter(h)
                for array, sorted_rows in zip(final, state, strict=True):
                    schedule.unsort(sorted_rows, array[place])
                place += 1
            x = y
        return x, final, caches

    def _part(self, y: Array, index: int) -> Array:
        """Return the features of an output that belong to one direction."""
        return y[:, :, index * self.hidden_size : (index + 1) * self.hidden_size]

    # ---- arguments ----------------------------------------------------------------------------

    def _check(
        self, x: npt.ArrayLike, state: State | None, lengths: npt.ArrayLike | None
    ) -> tuple[Array, list[Array], Array | None]:
        array = check_float("x", x, self.dtype)
        if array.ndim != 3 or array.shape[2] != self.input_size:
            raise ShapeError(
                f"x must have shape (T, N, {self.input_size}), time first; got {array.shape}"
            )
        n_steps, n_batch = array.shape[:2]
        initial = self._check_state("state", state, n_batch)
        return array, initial, check_lengths(lengths, n_steps, n_batch)

    def _check_state(self, name: str, state: State | None, n_batch: int) -> list[Array]:
        shape = (self.num_layers * self.num_directions, n_batch, self.hidden_size)
        return check_state(name, state, self._cell.carries, shape, self.dtype)

    def _join_state(self, arrays: list[Array]) -> State:
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    # ---- configuration and state --------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal network, save for its weights.

        The normalizer is given by its registered name, or as it was given if it has none.
        """
        norm = self.norm
        if isinstance(norm, type) and issubclass(norm, Normalizer):
            with contextlib.suppress(UnknownNormalizerError):
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
        """Make a network from what `get_config` returned, with new weights."""
        return cls(**config)

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
            As `state_dict` returns it.

        Raises
        ------
        StateError
            If entries are missing or unexpected, or have another shape or type; the message names
            all of them.
        """
        checkpoint.restore(self._directions, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and state to a file in the safetensors format.

        Parameters
        ----------
        path : str or path-like
            An existing file is replaced.

        Raises
        ------
        StateError
            If the normalizer has no registered name, by which `load` could find it, or
            ``norm_config`` holds what JSON cannot.
        """
        config = self.get_config()
        if not isinstance(config["norm"], str):
            raise StateError(
                "to save a network, its normalizer must have a registered name; got "
                f"{config['norm']!r}. Register the class with @normlib.register(name), and create "
                "the network with norm=name"
            )
        checkpoint.write(path, config, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Make the network that `save` wrote to a file.

        Loading runs no code from the file.

        Raises
        ------
        StateError
            If the file is not one that `save` wrote.
        UnknownNormalizerError
            If its normalizer is not registered here.
        """
        config, state = checkpoint.read(path)
        try:
            rnn = cls.from_config(config)
        except TypeError as error:
            raise StateError(
                f"{os.fspath(path)} holds a configuration that this version cannot use: {error}"
            ) from error
        rnn.load_state_dict(state)
        return rnn
