"""Recurrent networks over layers and directions, with a normalizer at every time step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib.arrays import as_integer
from normlib.errors import ParameterError, ShapeError
from normlib.normalizers.base import Normalizer
from normlib.rnn import checkpoint
from normlib.rnn.arguments import Array, State, check_float, check_lengths, check_rows, check_state
from normlib.rnn.cache import Cache, signature
from normlib.rnn.network import Network
from normlib.rnn.population import Population

__all__ = ["RNN"]


class Path(NamedTuple):
    """Which loop over time an RNN runs: "fused" or "stepwise", and why not the first."""

    inference: str
    training: str
    reason: str


class RNN(Network):
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
        Of the cell "rnn"; no other has the choice.
    reset_after : bool, default True
        Of the cell "gru": whether the reset comes after the product with h, as in PyTorch, or
        before it, as in the classical GRU. No other cell has the choice.
    norm_config : mapping, optional
        Passed to every normalizer, such as ``{"eps": 1e-6}``. ``bias`` and ``dtype`` are the RNN's.
    rng : int, numpy.random.Generator or None, default None
        Draws the weights, uniform in ±1/sqrt(H). Biases start at 0; gains at the normalizer's
        ``rnn_gain``.
    dtype : {float32, float64}, default float32
        Of parameters, computation and results. Input is float32 or float64, and is cast to it.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        All parameters as live arrays, under PyTorch's names (``weight_ih_l0``,
        ``bias_hh_l1_reverse``) and those of the sites (``norm_ih_l0.gain``). To assign one is to
        copy values into it. Equality compares names and values.
    path : Path
        Which loop over time runs.
    normalizers : mapping of str to Normalizer
        By site, not to be replaced: ``norm_ih_l0``, ``norm_hh_l0``; LSTM ``norm_c_l0``; vanilla
        ``norm_a_l0`` alone; GRU also ``norm_in_l0``, ``norm_hn_l0``; with suffix ``_reverse`` for
        the reverse direction.

    Raises
    ------
    ParameterError, DTypeError
        If an argument is outside its range, of another type, or without effect on the cell.
    UnknownNormalizerError
        If no normalizer has that name.
    PluginError
        If ``norm`` is an abstract class, or makes what was not asked for. At a time step, if a
        normalizer returns something else than it should.

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

    *Constant inputs.* At a step at which all rows have the same input and state, such as at the
    first, black pixels of images, the gradient of a normalizer over the batch is as steep as
    1/sqrt(eps), and over some such steps it leaves the range of numbers. The gradients of
    parameters contain none of that, as its sum over the batch is zero. `backward` leaves it out: at
    these steps it gives each row the mean over all. So all gradients are finite, those of
    parameters are what they should be, and those of x and of the state are that mean there.

    *Errors* in a normalizer carry a note with the layer and the time step, counted from 0 in the
    order of processing.

    *Reproducible.* With a normalizer that works per sample, an output row has the same bits in
    every batch, with any number of threads, and by `step`. Gradients have the same bits with any
    number of threads. All are the same on every CPU with FMA.

    *Fused.* Where every normalizer has compiled row functions (`Normalizer.row_functions`), or in
    training is `BatchNorm`, all time steps run in one loop without Python, with the same bits;
    `path` tells whether.

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

    @property
    def path(self) -> Path:
        """Which loop over time runs, and why: fused, or step by step.

        Training with `BatchNorm`, alone or beside the identity, is fused too: its formulas are
        compiled into a loop of their own. Only where its statistics of float64 overflow does a
        call go step by step all the same.

        Examples
        --------
        >>> import normlib
        >>> normlib.RNN(3, 4, norm="batch").path
        Path(inference='fused', training='fused', reason='')
        >>> class Mine(normlib.BatchNorm):
        ...     def backward(self, dy, cache):
        ...         return super().backward(dy, cache)
        >>> normlib.RNN(3, 4, norm=Mine).path.reason
        'Mine at norm_ih_l0 has no compiled row functions'
        """
        reasons = [
            next(filter(None, (one.path(training=training) for one in self._directions)), "")
            for training in (False, True)
        ]
        inference, training = ("stepwise" if reason else "fused" for reason in reasons)
        return Path(inference, training, reasons[0] or reasons[1])

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
            Values in float32 or float64.
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
        if lengths is not None and type(x) is np.ndarray and x.ndim == 3:
            lengths = check_lengths(lengths, *x.shape[:2])
        if lengths is None:
            quick = self._layers.run(x, state)
            if quick is not None:
                return quick
        x, initial, lengths = self._check(x, state, lengths)
        y, final = self._layers.infer(x, initial, lengths)
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
            As ``__call__``; and if fewer rows have a valid time step than a normalizer takes its
            statistics of (two, for batch normalization). After any error the running statistics
            are what they were.
        """
        x, initial, lengths = self._check(x, state, lengths)
        check_rows("forward", x.shape, lengths, self.normalizers)
        with checkpoint.restored_on_error(self._stateful()):
            y, final, caches = self._layers.forward(x.copy(), initial, lengths)
        return y, self._join_state(final), Cache(self._signature(), x.shape[:2], caches)

    def population(self) -> Population:
        """Take running statistics anew, over a whole training set, with the weights as they are.

        Statistics that training averaged are of weights that have changed since, and an
        exponential average is mostly of the last batches. Feed this pass every batch of the
        training set once, after training; when its block ends, the statistics become the plain
        averages, over all batches, of those by which training normalizes, for each site and time
        step apart.

        Returns
        -------
        population : normlib.rnn.Population
            A context manager. Feed it by ``population.update(x, state=None, lengths=None)``, which
            returns y and the final state, and makes no cache.

        Raises
        ------
        ParameterError
            When the block ends, if it fed no batch.

        Notes
        -----
        A batch counts in proportion to its valid rows at the time step: all cases of the training
        set weigh the same, and batches of one size without padding give the average over batches
        of Cooijmans et al. The variance is the average of those within batches, without that of
        their means.

        A time step with too few valid rows for statistics (fewer than two) is left out, and time
        steps that no batch reaches keep the statistics that they had.

        Until the block has ended without an error, nothing changes. After an error, and by an
        exception that leaves the block, everything is as it was. Do not change parameters within
        the block.

        With a normalizer that works per sample there is nothing to take, and the pass changes
        nothing. One of your own that has buffers is given a new normalizer's, which see the batches
        in turn, unless it overrides `Normalizer.population_twin`.

        Examples
        --------
        >>> import numpy as np
        >>> import normlib
        >>> rnn = normlib.RNN(3, 4, norm="batch", norm_config={"steps": 5}, rng=0)
        >>> batches = np.random.default_rng(0).standard_normal((10, 5, 32, 3))
        >>> with rnn.population() as population:
        ...     for x in batches:
        ...         y, state = population.update(x)
        >>> rnn.normalizers["norm_ih_l0"].num_batches
        array([10, 10, 10, 10, 10])
        >>> products = batches[:, 0] @ rnn.parameters["weight_ih_l0"].T  # of the first time step
        >>> np.allclose(rnn.normalizers["norm_ih_l0"].running_mean[0], products.mean(axis=(0, 1)))
        True
        """
        return Population(self.normalizers, self._gather)

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
        quick = self._layers.step(x, state, first)
        if quick is not None:
            return quick
        array = check_float("x", x, self.dtype)
        if array.ndim != 2 or array.shape[1] != self.input_size:
            raise ShapeError(f"x must have shape (N, {self.input_size}); got {array.shape}")
        array, initial, _ = self._check(array[np.newaxis], state, None)
        y, final = self._layers.infer(array, initial, None, first)
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
            If `dy` or `dstate` does not fit what `forward` returned, or `cache` is something else.
        ParameterError
            If `cache` comes from a network of another architecture or with other normalizers.
        """
        cache = Cache.checked(cache, self._signature())
        n_steps, n_batch = cache.shape
        d_output = check_float("dy", dy, self.dtype)
        shape = (n_steps, n_batch, self.output_size)
        if d_output.shape != shape:
            raise ShapeError(f"dy must have the shape of y, {shape}; got {d_output.shape}")
        d_final = self._check_state("dstate", dstate, n_batch)
        dx, d_initial, grads = self._layers.backward(d_output, d_final, cache.directions)
        ordered = {name: grads[name] for name in self.parameters}
        return dx, self._join_state(d_initial), ordered

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

    def _gather(
        self,
        x: npt.ArrayLike,
        state: State | None,
        lengths: npt.ArrayLike | None,
        twins: Mapping[str, Normalizer],
    ) -> tuple[Array, State]:
        array, initial, lengths = self._check(x, state, lengths)
        check_rows("update", array.shape, lengths, self.normalizers)
        y, final = self._layers.gather(array, initial, lengths, twins)
        return y, self._join_state(final)

    def _check_state(self, name: str, state: State | None, n_batch: int) -> list[Array]:
        shape = (self.num_layers * self.num_directions, n_batch, self.hidden_size)
        return check_state(name, state, self._layers.cell.carries, shape, self.dtype)

    def _stateful(self) -> list[Normalizer]:
        """Return the normalizers whose state ``forward`` may change."""
        return [
            normalizer
            for normalizer in self.normalizers.values()
            if normalizer.buffers or type(normalizer).state_dict is not Normalizer.state_dict
        ]

    def _signature(self) -> dict[str, Any]:
        return signature(self._architecture, self.normalizers)

    def _join_state(self, arrays: list[Array]) -> State:
        return arrays[0] if len(arrays) == 1 else tuple(arrays)
