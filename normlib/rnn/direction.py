"""One layer of a recurrent network in one direction: the loop over time.

Design
------
A `Direction` owns the weights of its cell and a normalizer for each of its sites. It works on
packed rows (see `normlib.rnn.sequence`): the products with ``weight_ih`` of all time steps are one
product, the products with ``weight_hh`` and everything else go step by step, and so do the
normalizers, each of which is called once per site and time step and told which step it is. Weight
gradients are products over all time steps, made once at the end.

A product sums in an order that depends neither on the number of rows nor on the threads. With a
normalizer that works per sample, a row therefore comes out in the same bits in any batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import product as kernels
from normlib.normalizers.base import BatchRule, Normalizer
from normlib.normalizers.rows import RowFunctions
from normlib.rnn import fused, fused_batch, fused_training
from normlib.rnn.cells import BackwardStep, Cell, ForwardStep, add_to
from normlib.rnn.gradients import WeightGradients
from normlib.rnn.sequence import Schedule
from normlib.rnn.sites import Backward, Inference, Population, Training, freeze
from normlib.threads import threads_for

__all__ = ["Cache", "Direction"]

# Multiply-adds of a packed product that count as one element of another kernel. One element costs
# about 16, but a product is done at every step, and where cores are shared each parallel region
# may wait a scheduler's tick for a thread: only products of a tenth of a millisecond take it.
PRODUCTS_PER_ELEMENT = 256

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]


@dataclass(frozen=True)
class Cache:
    """What `Direction.backward` needs of `Direction.forward`; its own memory.

    Of each time step it holds the input, what the cell saves, and the normalizers' caches.
    """

    schedule: Schedule
    rows: Array
    initial: State
    saved: Mapping[str, Array]
    weights: tuple[Array, Array]
    normalizers: Mapping[str, Normalizer]
    caches: Mapping[str, list[Any]]


AnyCache: TypeAlias = Cache | fused_training.Cache | fused_batch.Cache


class Direction:
    """Weights, normalizers, and the loop over time of one layer in one direction.

    Parameters
    ----------
    cell : Cell
        What a time step computes.
    input_size : int
        Features of x.
    suffix : str
        Ends the names of parameters and sites: "_l0", "_l0_reverse".
    create : callable
        ``create(features, bias=...)`` makes a normalizer.
    rng : numpy.random.Generator
        Draws the weights, uniform in ±1/sqrt(H).
    dtype : numpy.dtype
        float32 or float64.

    Attributes
    ----------
    parameters : dict of str to array
        The weights and biases, under PyTorch's names.
    normalizers : dict of str to Normalizer
        Under the names of their sites, such as "norm_ih_l0".
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        suffix: str,
        create: Callable[..., Normalizer],
        rng: np.random.Generator,
        dtype: np.dtype[Any],
    ) -> None:
        bound = 1 / np.sqrt(cell.hidden_size)
        self.cell = cell
        self.input_size = input_size
        self.suffix = suffix
        self.dtype = dtype
        self.parameters: dict[str, Array] = {}
        for name, shape in cell.shapes(input_size).items():
            if name.startswith("weight"):
                array = rng.uniform(-bound, bound, shape).astype(dtype)
            else:
                array = np.zeros(shape, dtype)
            self.parameters[name + suffix] = array
        self.normalizers: dict[str, Normalizer] = {}
        for site in cell.sites:
            normalizer = create(site.gates * cell.hidden_size, bias=site.bias)
            if "gain" in normalizer.parameters:
                normalizer.parameters["gain"][...] = normalizer.rnn_gain
            self.normalizers[site.name + suffix] = normalizer
        self._fused = fused_training.FusedTraining(cell, input_size, dtype)
        self._fused_batch = fused_batch.FusedBatch(self._fused)
        self.may_fuse = True

    def infer(
        self, rows: Array, state: State, schedule: Schedule, step: int
    ) -> tuple[Array, State]:
        """Run over time for inference.

        Parameters
        ----------
        rows : (total, I) array
            Packed input.
        state : tuple of (N, H) arrays
            The initial state, in running order.
        schedule : Schedule
            Which rows run when.
        step : int
            The number of the first time step, for the normalizers.

        Returns
        -------
        h : (total, H) array
            Packed output.
        state : tuple of (N, H) arrays
            The final state, in running order.
        """
        if self.may_fuse:
            try:
                fused_result = self._fused.infer(
                    rows, state, schedule, self._weights(), self.normalizers, step
                )
            except Exception as error:
                error.add_note(f"in {self}")
                raise
            if fused_result is not None:
                return fused_result
        normalize = Inference(self.normalizers, self.suffix, step)
        saved = self._buffers(schedule, every_step=False)
        final = self._run(rows, state, schedule, saved, normalize)
        return saved["h"], final

    def step(self, x: object, state: object, number: int) -> tuple[Array, Any] | None:
        """Run one time step of arguments as `RNN.step` takes them; None unless they are plain."""
        if not self.may_fuse:
            return None
        return self._fused.step(x, state, self._weights(), self.normalizers, number)

    def run(self, x: object, state: object) -> tuple[Array, Any] | None:
        """Run all time steps of arguments as `RNN` takes them; None unless they are plain."""
        if not self.may_fuse:
            return None
        try:
            return self._fused.run(x, state, self._weights(), self.normalizers)
        except Exception as error:
            error.add_note(f"in {self}")
            raise

    def forward(
        self, rows: Array, state: State, schedule: Schedule
    ) -> tuple[Array, State, AnyCache]:
        """Run over time for training; arguments and results as `infer`, and a cache.

        The cache keeps ``rows`` and ``state``, and shares memory with h: do not change them.
        """
        frozen = {name: freeze(normalizer) for name, normalizer in self.normalizers.items()}
        functions = self._row_functions(frozen, training=True)
        if not isinstance(functions, str):
            try:
                return self._fused.forward(
                    rows, state, schedule, self._weights(), functions, frozen
                )
            except Exception as error:
                error.add_note(f"in {self}")
                raise
        rules = self._batch_rules(frozen)
        if not isinstance(rules, str):
            try:
                result = self._fused_batch.forward(
                    rows, state, schedule, self._weights(), rules, frozen
                )
            except Exception as error:
                error.add_note(f"in {self}")
                raise
            if result is not None:
                return result
        normalize = Training(self.normalizers, self.suffix)
        saved = self._buffers(schedule, every_step=True)
        final = self._run(rows, state, schedule, saved, normalize)
        weights = self._get("weight_ih").copy(), self._get("weight_hh").copy()
        cache = Cache(schedule, rows, state, saved, weights, frozen, normalize.caches)
        return saved["h"], final, cache

    def gather(
        self, rows: Array, state: State, schedule: Schedule, twins: Mapping[str, Normalizer]
    ) -> tuple[Array, State]:
        """Run over time as `forward` does, without a cache, with statistics going to the twins.

        Arguments and results are as of `infer`; ``twins`` has one for each of the normalizers.
        """
        if all(normalizer.per_sample for normalizer in self.normalizers.values()):
            return self.infer(rows, state, schedule, 0)
        normalize = Population(self.normalizers, twins, self.suffix)
        saved = self._buffers(schedule, every_step=False)
        final = self._run(rows, state, schedule, saved, normalize)
        return saved["h"], final

    def backward(
        self, d_rows: Array, dstate: State, cache: AnyCache
    ) -> tuple[Array, State, dict[str, Array]]:
        """Propagate back through time.

        Parameters
        ----------
        d_rows : (total, H) array
            The gradient of the packed output.
        dstate : tuple of (N, H) arrays
            The gradient of the final state, in running order. Overwritten.
        cache : Cache
            From `forward`; it stays as it is.

        Returns
        -------
        dx : (total, I) array
            The gradient of the packed input.
        dstate : tuple of (N, H) arrays
            The gradient of the initial state, in running order.
        grads : dict of str to array
            The gradients of the weights, biases and the normalizers' parameters, by name.
        """
        if isinstance(cache, fused_training.Cache):
            dx, dstate, d_bias, weights, grads = self._fused.backward(d_rows, dstate, cache)
        elif isinstance(cache, fused_batch.Cache):
            dx, dstate, d_bias, weights, grads = self._fused_batch.backward(d_rows, dstate, cache)
        else:
            return self._step_backward(d_rows, dstate, cache)
        return dx, dstate, weights.named(self.suffix, d_bias) | grads

    def _step_backward(
        self, d_rows: Array, dstate: State, cache: Cache
    ) -> tuple[Array, State, dict[str, Array]]:
        cell, schedule, saved = self.cell, cache.schedule, cache.saved
        weight_ih, weight_hh = cache.weights
        n_threads = self._threads(schedule)
        product = _Product(cell.cut(weight_hh))
        denormalize = Backward(cache.normalizers, self.suffix, cache.caches)
        sizes = [block * cell.hidden_size for block in cell.blocks]
        d_inputs = tuple(np.empty((schedule.total, size), self.dtype) for size in sizes)
        d_hidden = tuple(np.empty((schedule.total, size), self.dtype) for size in sizes)
        d_bias = np.zeros(self._merged_bias().shape, np.float64)
        by_batch = any(not normalizer.per_sample for normalizer in cache.normalizers.values())
        step = 0
        try:
            for step in reversed(range(len(schedule.counts))):
                start, count = schedule.starts[step], schedule.counts[step]
                here = slice(start, start + count)
                if step:
                    before = schedule.starts[step - 1]
                    state = tuple(saved[key][before : before + count] for key in cell.carries)
                else:
                    state = tuple(array[:count] for array in cache.initial)
                denormalize.step = step
                denormalize.alike = by_batch and _alike(cache.rows[here], *state)
                add_to(dstate[0][:count], d_rows[here])
                cell.backward_step(
                    BackwardStep(
                        tuple(array[:count] for array in dstate),
                        state,
                        product,
                        denormalize,
                        {key: array[here] for key, array in saved.items()},
                        tuple(array[here] for array in d_inputs),
                        tuple(array[here] for array in d_hidden),
                        d_bias,
                        n_threads,
                    )
                )
        except Exception as error:
            error.add_note(f"in backward, at time step {step} of {self}")
            raise
        weights = WeightGradients(cell, weight_ih, weight_hh)
        states = schedule.before(saved["h"], cache.initial[0], 0, len(schedule.counts))
        n_threads = threads_for(schedule.total * weight_ih.size // PRODUCTS_PER_ELEMENT)
        weights.add(cache.rows, states, saved.get("gates"), d_inputs, d_hidden, n_threads)
        grads = weights.named(self.suffix, d_bias) | denormalize.grads()
        back = _Product(cell.cut(weight_ih))
        dx = back(d_inputs[0], 0)
        for block in range(1, len(d_inputs)):
            add_to(dx, back(d_inputs[block], block))
        return dx, dstate, grads

    def __str__(self) -> str:
        return f"layer {self.suffix.removeprefix('_l').replace('_', ', ')}"

    def _threads(self, schedule: Schedule) -> int:
        """Threads for the elementwise kernels of one time step."""
        widest = max(schedule.counts, default=0)
        return threads_for(widest * self.cell.gates * self.cell.hidden_size)

    def path(self, *, training: bool) -> str:
        """Return "" if the fused loop runs, else why the loop goes step by step."""
        functions = self._row_functions(self.normalizers, training=training)
        if not isinstance(functions, str):
            return ""
        if training and not isinstance(self._batch_rules(self.normalizers), str):
            return ""
        return functions

    def _row_functions(
        self, normalizers: Mapping[str, Normalizer], *, training: bool
    ) -> dict[str, RowFunctions] | str:
        if not self.may_fuse:
            return "asked to go step by step"
        return fused.row_functions(self.cell, self.dtype, normalizers, training=training)

    def _batch_rules(
        self, normalizers: Mapping[str, Normalizer]
    ) -> dict[str, BatchRule | None] | str:
        if not self.may_fuse:
            return "asked to go step by step"
        return fused_batch.batch_rules(self.cell, self.dtype, normalizers)

    def _weights(self) -> tuple[Array, Array, Array, Array]:
        weight_ih, weight_hh, bias_ih, bias_hh = self.parameters.values()
        return weight_ih, weight_hh, bias_ih, bias_hh

    def _get(self, name: str) -> Array:
        return self.parameters[name + self.suffix]

    def _merged_bias(self) -> Array:
        return self.cell.merge_biases(self._get("bias_ih"), self._get("bias_hh"))

    def _buffers(self, schedule: Schedule, *, every_step: bool) -> dict[str, Array]:
        """Arrays for what the cell saves: of every step, or h of every step and the rest of one."""
        one = schedule.counts[0] if schedule.counts else 0
        return {
            key: np.empty(
                (
                    schedule.total if every_step or key == "h" else one,
                    gates * self.cell.hidden_size,
                ),
                self.dtype,
            )
            for key, gates in self.cell.saved.items()
        }

    def _run(
        self,
        rows: Array,
        state: State,
        schedule: Schedule,
        saved: Mapping[str, Array],
        normalize: Inference | Population | Training,
    ) -> State:
        cell = self.cell
        n_threads = self._threads(schedule)
        project = _Product([block.T for block in cell.cut(self._get("weight_ih"))])
        inputs = [project(rows, block) for block in range(len(cell.blocks))]
        product = _Product([block.T for block in cell.cut(self._get("weight_hh"))])
        bias = self._merged_bias()
        final = tuple(array.copy() for array in state)
        first_step, step = normalize.step, 0
        try:
            for step, (start, count) in enumerate(
                zip(schedule.starts, schedule.counts, strict=True)
            ):
                here, one = slice(start, start + count), slice(count)
                now = {
                    key: array[here if len(array) == schedule.total else one]
                    for key, array in saved.items()
                }
                state = tuple(array[one] for array in state)
                normalize.step = first_step + step
                cell.forward_step(
                    ForwardStep(
                        tuple(array[here] for array in inputs),
                        state,
                        bias,
                        product,
                        normalize,
                        now,
                        n_threads,
                    )
                )
                state = tuple(now[key] for key in cell.carries)
                for array, last in zip(final, state, strict=True):
                    array[one] = last
        except Exception as error:
            error.add_note(f"at time step {first_step + step} of {self}")
            raise
        return final


def _alike(*arrays: Array) -> bool:
    """Whether in each of the arrays all rows are the same, and there are several."""
    return len(arrays[0]) > 1 and all(
        bool((array[1] == array[0]).all() and (array[2:] == array[0]).all()) for array in arrays
    )


class _Product:
    """``product(a, i)`` is ``a @ blocks[i]``; each block is packed once, here."""

    def __init__(self, blocks: Sequence[Array]) -> None:
        self.packed = [kernels.pack(block) for block in blocks]
        self.shapes = [block.shape for block in blocks]

    def __call__(self, a: Array, block: int) -> Array:
        depth, columns = self.shapes[block]
        out = np.empty((len(a), columns), a.dtype)
        n_threads = threads_for(out.size * depth // PRODUCTS_PER_ELEMENT)
        kernels.product(a, self.packed[block], out, n_threads)
        return out
