"""The loop over time without Python, for training: forward, and back through time.

Design
------
`FusedTraining` adds to `normlib.rnn.fused.Fused` the arrays that a cell saves for backward, and
what backward makes of them. Backward runs in parts, so that gradients of the products live in the
cache.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import buffers
from normlib._kernels import cells as cell_kernels
from normlib._kernels import product as product_kernels
from normlib._kernels import recurrent as kernels
from normlib.arrays import as_dtype
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions
from normlib.rnn.cells import add_to
from normlib.rnn.fused import Fused, describe, row_functions
from normlib.rnn.gradients import WeightGradients
from normlib.rnn.sequence import Schedule

__all__ = ["BACKWARD_ROWS", "Cache", "FusedTraining"]

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]

# Rows of all steps of one call backward: enough for products of their gradients, few for the cache.
BACKWARD_ROWS = 1024
# What training keeps is large if it is more than this part of the memory that is kept for outputs
# to come: the gates are then computed again, in 0.5 to 4 % of the time (docs/design/recurrent.md).
LARGE_PART = 2


@dataclass(frozen=True)
class Cache:
    """What `FusedTraining.backward` needs of `FusedTraining.forward`; its own memory.

    Of each row of a time step it holds the input and what backward cannot compute again without a
    product. Without a normalizer these are 5H numbers for the LSTM, gates and c; 5H for the GRU and
    H for the vanilla network. With one they are the products with x and with h, the states, and
    the gates, 15H and 11H, or, where that is large, the same without the gates, which are made
    again, 10H and 7H; of the classical GRU, whose gates are always kept, 10H; and of the vanilla
    network 2H.
    """

    schedule: Schedule
    rows: Array
    initial: State
    saved: Mapping[str, Any]
    weights: tuple[Array, Array]
    bias: Array
    normalizers: Mapping[str, Normalizer]
    caches: Mapping[str, npt.NDArray[np.float64] | None]


class FusedTraining(Fused):
    """Runs one layer in one direction for training, and, as `Fused`, for inference."""

    def forward(
        self,
        rows: Array,
        state: State,
        schedule: Schedule,
        weights: tuple[Array, Array, Array, Array],
        functions: Mapping[str, RowFunctions],
        normalizers: Mapping[str, Normalizer],
    ) -> tuple[Array, State, Cache]:
        """Run over time for training. The cache keeps ``rows`` and ``state``."""
        total, gates = schedule.total, self.cell.gates
        plain = all(rows_of.forward is None for rows_of in functions.values())
        sizes = self._sizes(total, plain)
        saved: dict[str, Any] = dict.fromkeys(("c", "gates", "extra"))
        saved |= self.allocate(total, sizes)
        # Not kept: what nobody asks for again, such as h and tanh(c) of a plain LSTM.
        if "products" not in sizes:
            saved["products"] = self.empty(len(state[0]), gates)
        if "inputs" not in sizes:
            saved["inputs"] = self.empty(kernels.window_rows(len(state[0])), gates)
        if "h" not in sizes:
            saved |= self.allocate(total, {"h": 1})
        if plain and not self.vanilla:
            saved["gates"] = saved["inputs"]  # they may take the place of the products
        caches = {
            name: np.empty((total, rows_of.cache_size)) if rows_of.cache_size else None
            for name, rows_of in functions.items()
        }
        sites = describe(functions, normalizers, caches)
        plan = self._packed(weights)
        self._forward(plan, rows, state, schedule, saved, sites, 0, True, sizes)
        final = tuple(
            schedule.last(saved[key], array)
            for key, array in zip(self.cell.carries, state, strict=True)
        )
        h = saved["h"]
        saved |= {key: None for key in ("h", "inputs", "products") if key not in sizes}
        cache = Cache(schedule, rows, state, saved, plan.weights, plan.bias, normalizers, caches)
        return h, final, cache

    def backward(
        self, d_rows: Array, dstate: State, cache: Cache
    ) -> tuple[Array, State, npt.NDArray[np.float64], WeightGradients, dict[str, Array]]:
        """Propagate back through time; ``dstate`` is overwritten.

        Returns
        -------
        dx, dstate
            As of `Direction.backward`.
        d_bias : array of float64
            The gradient of the merged bias.
        weights : WeightGradients
        grads : dict of str to array
            The gradients of the normalizers' parameters, by name.
        """
        cell, schedule, saved = self.cell, cache.schedule, cache.saved
        size, n_rows = cell.hidden_size, len(dstate[0])
        functions = row_functions(cell, self.dtype, cache.normalizers, training=True)
        assert not isinstance(functions, str)
        d_state = np.zeros((n_rows, size), self.dtype) if self.gru else None
        d_gates = self.empty(n_rows, 2) if self.classic else None
        d_reset_h = self.empty(n_rows, 1) if self.classic else None
        block = max(4, -(-n_rows // 16))
        places, n_sums = _places(len(cache.bias), functions)
        sums = np.zeros((max(1, -(-n_rows // block)), n_sums))
        sites = describe(functions, cache.normalizers, cache.caches)
        zero = np.zeros(1, self.dtype)
        weight_ih, weight_hh = cache.weights
        plan = kernels.Plan(self.kind, weight_ih, weight_hh, zero, zero, cache.bias, True)
        packed_ih = product_kernels.pack(weight_ih)
        columns, n_threads = self._threads(schedule, n_rows)
        scratch = self._scratch(n_threads, sites)
        starts, counts = schedule.starts_array, schedule.counts_array
        weights = WeightGradients(cell, weight_ih, weight_hh)
        dx = np.empty((schedule.total, self.input_size), self.dtype)
        parts = list(self.parts(schedule, n_rows, BACKWARD_ROWS))
        most = max((schedule.rows(*part) for part in parts), default=0)
        # Without normalizers the products with x and with h have the same gradient.
        shared = self.vanilla or (
            self.lstm and all(rows_of.forward is None for rows_of in functions.values())
        )
        d_inputs = self.empty(most, cell.gates)
        d_products = d_inputs if shared else self.empty(most, cell.gates)
        for first, stop in reversed(parts):
            n = schedule.rows(first, stop)
            here = slice(schedule.starts[first], schedule.starts[first] + n)
            since, h, extra = 0, saved["h"], saved["extra"]
            if h is None:
                since = max(0, first - 1)
                h, extra = self._states(cache, since, stop, n_threads)
                extra = extra[-n:]
            elif extra is not None:
                extra = extra[here]
            plan.backward(
                starts, counts, first, stop, cache.initial[0],
                cache.initial[1] if self.lstm else None,
                sites, saved["inputs"], saved["products"], saved["gates"], saved["h"], saved["c"],
                extra, dstate[0], dstate[1] if self.lstm else None, d_rows, d_inputs, d_products,
                d_gates, d_state, d_reset_h, sums, places, scratch, block, columns, n_threads,
            )  # fmt: skip
            product_kernels.product(d_inputs[:n], packed_ih, dx[here], n_threads)
            weights.add(
                cache.rows[here],
                schedule.before(h, cache.initial[0], first, stop, since),
                saved["gates"][here] if self.classic else None,
                cell.cut_columns(d_inputs[:n]),
                cell.cut_columns(d_products[:n]),
                n_threads,
            )
        if d_state is not None:
            add_to(dstate[0], d_state)
        with np.errstate(all="ignore"):
            totals = sums.sum(axis=0)
        grads = {}
        for site_places, (name, rows_of) in zip(places[1:], functions.items(), strict=True):
            for place, key in zip(site_places, rows_of.names, strict=True):
                if place >= 0 and key is not None:
                    parameter = cache.normalizers[name].parameters[key]
                    total = totals[place : place + parameter.size].reshape(parameter.shape)
                    grads[f"{name}.{key}"] = as_dtype(total, parameter.dtype)
        return dx, dstate, totals[: len(cache.bias)], weights, grads

    def _sizes(self, total: int, plain: bool) -> dict[str, int]:
        """Arrays that training keeps of so many rows, and their features as a multiple of H."""
        gates = self.cell.gates
        extra = {} if self.classic else {"extra": 1}
        if self.vanilla:
            return {"h": 1} if plain else {"h": 1} | extra
        if plain:  # the gates take the place of the products with the input
            return {"inputs": gates} | ({"c": 1} if self.lstm else {"h": 1} | extra)
        sizes = {"inputs": gates, "products": gates, "h": 1} | ({"c": 1} if self.lstm else {})
        whole = sizes | {"gates": gates} | extra
        row_bytes = sum(whole.values()) * self.cell.hidden_size * self.dtype.itemsize
        large = total * row_bytes > buffers.get_limit() // LARGE_PART
        return sizes if large and not self.classic else whole

    def _states(self, cache: Cache, first: int, stop: int, n_threads: int) -> tuple[Array, Array]:
        """Return the LSTM's h and tanh(c) of some steps, computed again as forward did."""
        first_row = cache.schedule.starts[first]
        rows = slice(first_row, first_row + cache.schedule.rows(first, stop))
        gates, c = cache.saved["gates"][rows], cache.saved["c"][rows]
        h, tanh_c = buffers.aligned_like(c), buffers.aligned_like(c)
        cell_kernels.lstm_output_forward(gates, c, tanh_c, h, n_threads)
        return h, tanh_c

    def allocate(self, rows: int, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Arrays (rows, size · H) by name, in one block, whose memory may have been used before."""
        widths = {name: size * self.cell.hidden_size for name, size in sizes.items()}
        lengths = [-(-rows * width // 16) * 16 for width in widths.values()]
        ends = list(itertools.accumulate(lengths))
        block = buffers.aligned_like(np.empty(ends[-1], self.dtype))
        return {
            name: block[end - length :][: rows * width].reshape(rows, width)
            for (name, width), length, end in zip(widths.items(), lengths, ends, strict=True)
        }


def _places(n_bias: int, functions: Mapping[str, RowFunctions]) -> tuple[tuple[Any, ...], int]:
    """Where each parameter's gradient starts among all of them, -1 for none; and their number."""
    places: list[Any] = [0]
    place = n_bias
    for rows_of in functions.values():
        site = []
        for array, key in zip(rows_of.parameters, rows_of.names, strict=True):
            if array is None or key is None:
                site.append(-1)
            else:
                site.append(place)
                place += array.shape[-1]
        places.append(tuple(site))
    return tuple(places), -(-place // 16) * 16
