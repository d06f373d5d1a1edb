"""The loop over time without Python, for training with batch normalization.

Design
------
The rows of a batch meet in its statistics, so that no row function computes it: the kernel
`normlib._kernels.recurrent_batch` runs many time steps with the statistics of each, and keeps them.
The running statistics are made of these when all steps are done, in the order of the steps; only
what steps of one row take as constants is made before. So nothing has changed until nothing can
fail any more.

Results are those of the loop step by step, to the bit, but that gradients of weights are summed
in parts, as in `normlib.rnn.fused_training`. It still runs what is rare: a normalizer that computes
otherwise than `BatchNorm`, and float64 whose statistics overflow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import product as product_kernels
from normlib._kernels import recurrent_batch as kernels
from normlib.arrays import as_dtype
from normlib.normalizers.base import BATCH_METHODS, ROW_METHODS, BatchRule, Normalizer
from normlib.normalizers.batch import BatchNorm
from normlib.rnn import fused, fused_training
from normlib.rnn.cells import Cell, add_to
from normlib.rnn.gradients import WeightGradients
from normlib.rnn.sequence import Schedule
from normlib.threads import get_num_threads

__all__ = ["Cache", "FusedBatch", "batch_rules"]

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]
Rules: TypeAlias = Mapping[str, BatchRule | None]


def batch_rules(
    cell: Cell, dtype: np.dtype[Any], normalizers: Mapping[str, Normalizer]
) -> dict[str, BatchRule | None] | str:
    """Return the batch norms at a cell's sites, None for the identity; or why it is not those."""
    rules: dict[str, BatchRule | None] = {}
    for site, (name, normalizer) in zip(cell.sites, normalizers.items(), strict=True):
        kind, own = type(normalizer).__name__, vars(normalizer)
        if (normalizer.features, normalizer.dtype) != (site.gates * cell.hidden_size, dtype):
            return f"{kind} at {name} has other features, or another dtype, than it was made with"
        if normalizer.per_sample and ROW_METHODS.isdisjoint(own) and not normalizer.parameters:
            rows = normalizer.row_functions(training=True)
            if rows is not None and rows.forward is rows.backward is None:
                rules[name] = None
                continue
        rule = normalizer.batch_rule()
        if (
            rule is None
            or not BATCH_METHODS.isdisjoint(own)
            or not isinstance(normalizer.eps, float)
            or not 0 <= normalizer.eps < np.inf
            or not {"gain", "bias"}.issuperset(normalizer.parameters)
        ):
            return f"{kind} at {name} has no compiled row functions"
        for array in (rule.gain, rule.bias):
            if array is not None and not (
                type(array) is np.ndarray
                and array.dtype == dtype
                and array.flags.c_contiguous
                and array.flags.aligned
            ):
                return f"the parameters at {name} are not plain arrays"
        rules[name] = rule
    return rules


@dataclass(frozen=True)
class Statistics:
    """Of each time step of a site, (T, F); rest, for float64, is what mean lacks."""

    mean: Array
    rest: Array | None
    var: Array


@dataclass(frozen=True)
class Cache:
    """What `FusedBatch.backward` needs of `FusedBatch.forward`; its own memory.

    Of each row of a time step it holds the input, what each normalizer was given, the states, and
    the gates, and of the step the statistics: 15H numbers a row for the LSTM, 11H for the GRU, 10H
    for the classical one and 2H for the vanilla network.
    """

    schedule: Schedule
    rows: Array
    initial: State
    saved: Mapping[str, Array]
    weights: tuple[Array, Array]
    normalizers: Mapping[str, Normalizer]
    statistics: Mapping[str, Statistics | None]


class FusedBatch:
    """Trains one layer in one direction whose normalizers are batch norms, or the identity.

    Parameters
    ----------
    loop : FusedTraining
        Of the same layer and direction.
    """

    def __init__(self, loop: fused_training.FusedTraining) -> None:
        self.loop = loop
        self.cell = loop.cell
        self.dtype = loop.dtype

    def forward(
        self,
        rows: Array,
        state: State,
        schedule: Schedule,
        weights: tuple[Array, Array, Array, Array],
        rules: Rules,
        normalizers: Mapping[str, Normalizer],
    ) -> tuple[Array, State, Cache] | None:
        """Run over time for training. The cache keeps ``rows`` and ``state``.

        None where float64 statistics overflow, or running ones are no variances: nothing has
        changed then.
        """
        cell, loop, n_rows = self.cell, self.loop, len(state[0])
        weight_ih, weight_hh = weights[0].copy(), weights[1].copy()
        saved = loop.allocate(schedule.total, self._sizes())
        if loop.lstm:
            saved["norm_c"] = saved["c"]
        n_steps = len(schedule.counts_array)
        statistics = {
            name: None if rule is None else self._statistics(n_steps, normalizers[name].features)
            for name, rule in rules.items()
        }
        normed = [
            None if rule is None else np.empty((n_rows, normalizers[name].features), self.dtype)
            for name, rule in rules.items()
        ]
        sites = tuple(
            self._site(normalizers[name], statistics[name], saved[site.name], y=y)
            for site, name, y in zip(cell.sites, rules, normed, strict=True)
        )
        inputs = tuple(product_kernels.pack(block.T) for block in cell.cut(weight_ih))
        hidden = tuple(product_kernels.pack(block.T) for block in cell.cut(weight_hh))
        n_threads = self._threads(n_rows, n_steps)
        batches = int(np.count_nonzero(schedule.counts_array >= BatchNorm.min_rows))
        buffers = None
        scratch = self._scratch(n_threads)
        reset_h = loop.empty(n_rows, 1) if loop.classic else None
        input_rows = loop.empty(kernels.window_rows(n_rows), 1) if loop.vanilla else None
        bias = cell.merge_biases(weights[2], weights[3])
        for first, stop in _cut(loop.parts(schedule, n_rows), batches):
            if first == batches:
                buffers = self._updated(rules, statistics, batches)
            kernels.forward(
                loop.kind, inputs, hidden, bias, sites,
                (schedule.starts_array, schedule.counts_array, first, stop), rows, saved["h"],
                saved.get("c"), state, saved.get("gates"), saved.get("extra"), scratch, input_rows,
                reset_h, n_threads,
            )  # fmt: skip
        if any(
            one is not None and not self._is_usual(one, normalizers[name].eps, batches)
            for name, one in statistics.items()
        ):
            return None
        for name, new in (buffers or self._updated(rules, statistics, batches)).items():
            for key, array in new.items():
                normalizers[name].buffers[key][...] = array
        final = tuple(
            schedule.last(saved[key], array) for key, array in zip(cell.carries, state, strict=True)
        )
        return (
            saved["h"],
            final,
            Cache(schedule, rows, state, saved, (weight_ih, weight_hh), normalizers, statistics),
        )

    def backward(
        self, d_rows: Array, dstate: State, cache: Cache
    ) -> tuple[Array, State, npt.NDArray[np.float64], WeightGradients, dict[str, Array]]:
        """Propagate back through time, as `FusedTraining.backward`; ``dstate`` is overwritten."""
        cell, loop, schedule, saved = self.cell, self.loop, cache.schedule, cache.saved
        n_rows, size = dstate[0].shape
        weight_ih, weight_hh = cache.weights
        hidden = tuple(product_kernels.pack(block) for block in cell.cut(weight_hh))
        back = tuple(product_kernels.pack(block) for block in cell.cut(weight_ih))
        parts = list(loop.parts(schedule, n_rows, fused_training.BACKWARD_ROWS))
        most = max(schedule.rows(*part) for part in parts)
        d_bias = np.zeros((4 if loop.gru and not loop.classic else cell.gates) * size)
        sums: dict[str, dict[str, Array]] = {
            name: {key: np.zeros(array.shape) for key, array in normalizer.parameters.items()}
            for name, normalizer in cache.normalizers.items()
        }
        d_blocks = [loop.empty(n_rows, block) for block in cell.blocks]
        d_hidden_n = loop.empty(n_rows, 1) if loop.gru and not loop.classic else None
        d_sites: list[
            tuple[Array, Array, Array | None]
        ] = []  # of each site: the gradients of its output and input, and of the bias
        place = 0
        for k, site in enumerate(cell.sites):
            own_bias = d_bias[place : place + site.gates * size]
            if loop.lstm and k == 2:
                d_sites.append((loop.empty(n_rows, 1), loop.empty(n_rows, 1), None))
                continue
            dy, dx = d_blocks[k // 2], loop.empty(most, site.gates)
            if k % 2 == 0 or (k == 3 and d_hidden_n is not None):
                place += site.gates * size
                if k == 3 and d_hidden_n is not None:
                    dy = d_hidden_n
                d_sites.append((dy, dx, own_bias))
            else:
                d_sites.append((dy, dx, None))
        sites = tuple(
            self._site(
                cache.normalizers[name], one, saved[site.name], dy=dy, dx=dx, sums=sums[name],
                d_cell_bias=own_bias,
            )
            for site, (name, one), (dy, dx, own_bias) in zip(
                cell.sites, cache.statistics.items(), d_sites, strict=True
            )
        )  # fmt: skip
        d_inputs = [d_sites[2 * block][1] for block in range(len(cell.blocks))]
        d_products = d_inputs
        if not loop.vanilla:
            d_products = [d_sites[2 * block + 1][1] for block in range(len(cell.blocks))]
        n_threads = self._threads(n_rows, len(schedule.counts_array))
        scratch = self._scratch(n_threads)
        d_product = loop.empty(n_rows, 1) if loop.gru else None
        d_reset_h = loop.empty(n_rows, 1) if loop.classic else None
        weights = WeightGradients(cell, weight_ih, weight_hh)
        dx = np.empty((schedule.total, loop.input_size), self.dtype)
        for first, stop in reversed(parts):
            n = schedule.rows(first, stop)
            here = slice(schedule.starts[first], schedule.starts[first] + n)
            kernels.backward(
                loop.kind, hidden, sites,
                (schedule.starts_array, schedule.counts_array, first, stop), cache.rows,
                saved["h"], saved.get("c"), cache.initial, saved.get("gates"), saved.get("extra"),
                scratch, d_rows, dstate[0], dstate[1] if loop.lstm else None, d_product, d_reset_h,
                n_threads,
            )  # fmt: skip
            product_kernels.product(d_inputs[0][:n], back[0], dx[here], n_threads)
            for d, packed in zip(d_inputs[1:], back[1:], strict=True):
                more = np.empty((n, loop.input_size), self.dtype)
                product_kernels.product(d[:n], packed, more, n_threads)
                add_to(dx[here], more)
            weights.add(
                cache.rows[here],
                schedule.before(saved["h"], cache.initial[0], first, stop),
                saved["gates"][here] if loop.classic else None,
                [d[:n] for d in d_inputs],
                [d[:n] for d in d_products],
                n_threads,
            )
        grads = {
            f"{name}.{key}": as_dtype(total, self.dtype)
            for name, of_site in sums.items()
            for key, total in of_site.items()
        }
        return dx, dstate, d_bias, weights, grads

    def _sizes(self) -> dict[str, int]:
        """Arrays that are kept of every row, and their features as a multiple of H."""
        loop = self.loop
        sizes = {site.name: site.gates for site in self.cell.sites} | {"h": 1}
        if loop.lstm:  # norm_c is given c
            sizes["c"] = sizes.pop("norm_c")
        if not loop.vanilla:
            sizes["gates"] = self.cell.gates
        if not loop.vanilla and not loop.classic:
            sizes["extra"] = 1
        return sizes

    def _statistics(self, n_steps: int, features: int) -> Statistics:
        shape = n_steps, features
        rest = np.empty(shape) if self.dtype == np.float64 else None
        return Statistics(np.empty(shape), rest, np.empty(shape))

    def _is_usual(self, statistics: Statistics, eps: float, batches: int) -> bool:
        """Whether batch_norm_forward would have taken no other way, nor refused a variance."""
        var = statistics.var
        if bool((var[batches:] < 0).any()):
            return False
        if self.dtype == np.float32:
            return True
        with np.errstate(all="ignore"):
            return not bool((np.isinf(var[:batches]) | (var[:batches] + eps == 0)).any())

    def _updated(
        self, rules: Rules, statistics: Mapping[str, Statistics | None], batches: int
    ) -> dict[str, dict[str, Array]]:
        """Return the running statistics after all batches; steps of one row are given theirs."""
        buffers = {}
        for name, rule in rules.items():
            one = statistics[name]
            if rule is None or one is None:
                continue
            new = buffers[name] = rule.updated(one.mean[:batches], one.var[:batches])
            steps = np.minimum(np.arange(batches, len(one.mean)), len(new["running_mean"]) - 1)
            one.mean[batches:] = new["running_mean"][steps]
            one.var[batches:] = new["running_var"][steps]
        return buffers

    @staticmethod
    def _site(
        normalizer: Normalizer,
        statistics: Statistics | None,
        x: Array,
        *,
        y: Array | None = None,
        dy: Array | None = None,
        dx: Array | None = None,
        sums: Mapping[str, Array] | None = None,
        d_cell_bias: Array | None = None,
    ) -> "kernels.Site":
        """What the kernels want to know of a site."""
        sums, parameters, features = sums or {}, normalizer.parameters, normalizer.features
        if statistics is None:
            return (
                features, None, None, None, None, None, None, x, None, dy, dx, None, None,
                d_cell_bias,
            )  # fmt: skip
        return (
            features, normalizer.eps, parameters.get("gain"), parameters.get("bias"),
            statistics.mean, statistics.rest, statistics.var, x, y, dy, dx, sums.get("gain"),
            sums.get("bias"), d_cell_bias,
        )  # fmt: skip

    def _scratch(self, n_threads: int) -> Array:
        """Each thread's factors of the widest site."""
        return self.loop.empty(n_threads, kernels.FACTOR_ROWS * max(self.cell.blocks))

    def _threads(self, n_rows: int, n_steps: int) -> int:
        """Threads that share each time step, and meet several times in it."""
        per_step = self.loop.step_work(n_rows)
        if per_step * n_steps < 2 * fused.SHARED_PRODUCTS:
            return 1
        return max(1, min(get_num_threads(), per_step // (2 * fused.SHARED_STEP_PRODUCTS)))


def _cut(parts: Iterator[tuple[int, int]], step: int) -> Iterator[tuple[int, int]]:
    """Yield the parts, cut at a step."""
    for first, stop in parts:
        if first < step < stop:
            yield first, step
            yield step, stop
        else:
            yield first, stop
