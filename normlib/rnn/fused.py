"""The loop over time without Python: normalizers with compiled row functions.

Design
------
The kernels of `normlib._kernels.recurrent` run many time steps of one direction in one call, with
the products, the cell and the normalizers fused. Here is what they need: packed weights, which are
kept while the weights have the same bits, and the arrays that a cell saves. Which normalizers have
row functions, `row_functions` finds out; `normlib.rnn.direction` runs all others step by step.

A call does a bounded part of the sequence, so that Python can look at signals in between: Ctrl-C
ends a long run after the part it is in.
"""

import functools
import itertools
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import buffers
from normlib._kernels import cells as cell_kernels
from normlib._kernels import product as product_kernels
from normlib._kernels import recurrent as kernels
from normlib._kernels.changes import same_normalizers
from normlib.arrays import as_dtype
from normlib.normalizers.base import ROW_METHODS, Normalizer
from normlib.normalizers.rows import RowFunctions, check_rows
from normlib.rnn.cells import GRU, LSTM, Cell, ClassicGRU, Vanilla, add_to
from normlib.rnn.gradients import WeightGradients
from normlib.rnn.sequence import Schedule
from normlib.threads import get_num_threads

__all__ = ["Cache", "Fused", "row_functions"]

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]

# Multiply-adds of one call of a kernel: a tenth of a second on one core. What else a step does
# counts as so many: a row of any size, each of its gates' elements, and reading the weights, which
# takes as long as so many rows.
CALL_PRODUCTS = 1 << 32
ROW_PRODUCTS = 1 << 14
ELEMENT_PRODUCTS = 128
WEIGHT_ROWS = 16
# Multiply-adds that are worth a second thread: of a call, and of a step where threads meet at each.
SHARED_PRODUCTS = 1 << 22
SHARED_STEP_PRODUCTS = 1 << 17
# Fewer rows a thread than these are bound by reading the weights: threads share the weights then.
FEW_ROWS = 4
# Rows of all steps of one call backward: enough for products of their gradients, few for the cache.
BACKWARD_ROWS = 1024
# Rows of all steps in a call that is checked in one go.
SHORT_ROWS = 1024
# What training keeps is large if it is more than this part of the memory that is kept for outputs
# to come: the gates are then computed again, in 0.5 to 4 % of the time (docs/design/recurrent.md).
LARGE_PART = 2
# The number of a step past every parameter's last row, and far from the end of a C integer.
LAST_STEP = sys.maxsize >> 1
# Elements of a thread's scratch, as a multiple of H, beside a normalizer's cache.
SCRATCH = 14


def row_functions(
    cell: Cell, dtype: np.dtype[Any], normalizers: Mapping[str, Normalizer], *, training: bool
) -> dict[str, RowFunctions] | str:
    """Return the row functions of the normalizers at a cell's sites, or why there are not all.

    Raises
    ------
    SignatureError
        If a function has another signature than it must have.
    PluginError
        If a normalizer returned something else than `RowFunctions`.
    """
    functions = {}
    for site, (name, normalizer) in zip(cell.sites, normalizers.items(), strict=True):
        kind = type(normalizer).__name__
        if (normalizer.features, normalizer.dtype) != (site.gates * cell.hidden_size, dtype):
            return f"{kind} at {name} has other features, or another dtype, than it was made with"
        rows = normalizer.row_functions(training=training)
        own = vars(normalizer)
        if rows is None or not ROW_METHODS.isdisjoint(own):
            return f"{kind} at {name} has no compiled row functions"
        check_rows(f"of {kind} at {name}", rows, dtype)
        if training and (rows.forward is None) != (rows.backward is None):
            return f"{kind} at {name} has no compiled row functions for both forward and backward"
        for array, key in zip(rows.parameters, rows.names, strict=True):
            if array is None:
                continue
            if (
                type(array) is not np.ndarray
                or array.dtype != normalizer.dtype
                or (key is not None and array.shape != (normalizer.features,))
                or array.ndim not in (1, 2)
                or not (array.flags.c_contiguous and array.flags.aligned)
                or not array.size
            ):
                return f"the parameters at {name} are not plain arrays"
        functions[name] = rows
    return functions


@dataclass(frozen=True)
class Cache:
    """What `Fused.backward` needs of `Fused.forward`; its own memory.

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


class Fused:
    """Runs one layer in one direction; arguments are as of `normlib.rnn.direction.Direction`.

    Parameters
    ----------
    cell : Cell
        What a time step computes.
    input_size : int
        Features of x.
    dtype : numpy.dtype
        float32 or float64.
    """

    def __init__(self, cell: Cell, input_size: int, dtype: np.dtype[Any]) -> None:
        self.cell = cell
        self.input_size = input_size
        self.dtype = dtype
        self.kind = kernels.KINDS[_kind(cell)]
        self.lstm = isinstance(cell, LSTM)
        self.gru = isinstance(cell, GRU)
        self.classic = isinstance(cell, ClassicGRU)
        self.vanilla = isinstance(cell, Vanilla)
        self._plan: kernels.Plan | None = None
        self._quick: _Quick | None = None
        self._most_rows = 2 * SHARED_PRODUCTS // self._step_products(1)  # of one thread's call

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes: all but what is kept of the last call."""
        return {**vars(self), "_plan": None, "_quick": None}

    def infer(
        self,
        rows: Array,
        state: State,
        schedule: Schedule,
        weights: tuple[Array, Array, Array, Array],
        normalizers: Mapping[str, Normalizer],
        step: int,
    ) -> tuple[Array, State] | None:
        """Run over time; ``state`` becomes the final state. None without row functions."""
        sites = self._sites(normalizers)
        if sites is None:
            return None
        size, rows_now = self.cell.hidden_size, len(state[0])
        h = np.empty((schedule.total, size), self.dtype)
        saved = {
            "h": h,
            "c": state[1] if self.lstm else None,
            "inputs": self._empty(kernels.window_rows(rows_now), self.cell.gates),
            "products": self._empty(rows_now, self.cell.gates),
            "gates": self._empty(rows_now, 3) if self.classic else None,
            "extra": None,
        }
        step = min(step, LAST_STEP)
        self._forward(self._packed(weights), rows, state, schedule, saved, sites, step, False)
        return h, (schedule.last(h, state[0]), *state[1:])

    def step(
        self,
        x: object,
        state: object,
        weights: tuple[Array, Array, Array, Array],
        normalizers: Mapping[str, Normalizer],
        number: int,
    ) -> tuple[Array, Any] | None:
        """Run one time step of arguments as a user passed them; None unless they are plain."""
        sites = self._sites(normalizers)
        if sites is None:
            return None
        number = min(number, LAST_STEP)
        return self._packed(weights).step(x, state, sites, number, self._most_rows)

    def run(
        self,
        x: object,
        state: object,
        weights: tuple[Array, Array, Array, Array],
        normalizers: Mapping[str, Normalizer],
    ) -> tuple[Array, Any] | None:
        """Run all time steps of arguments as a user passed them; None unless they are plain.

        Long sequences are left to `infer`, whose checks take no time beside theirs.
        """
        if not buffers.is_plain(x) or x.ndim != 3 or x.dtype != self.dtype:
            return None
        n_steps, n_rows, n_features = x.shape
        if n_features != self.input_size:
            return None
        if n_steps == 1:
            one = self.step(x[0], state, weights, normalizers, 0)
            return None if one is None else (one[0][np.newaxis], one[1])
        total = n_steps * n_rows
        if not 0 < total <= SHORT_ROWS or total > self._most_rows:
            return None
        size = self.cell.hidden_size
        shape = (1, n_rows, size)
        if state is None:
            initial = tuple(np.zeros(shape, self.dtype) for _ in self.cell.carries)
        else:
            initial = state if type(state) is tuple else (state,)
            if len(initial) != len(self.cell.carries) or (type(state) is tuple) != self.lstm:
                return None
            for array in initial:
                if not buffers.is_plain(array) or array.shape != shape or array.dtype != x.dtype:
                    return None
        sites = self._sites(normalizers)
        if sites is None:
            return None
        h = self._empty(total, 1)
        c = initial[1].copy() if self.lstm else None
        c_rows = None if c is None else c[0]
        starts, counts = _every_row(n_steps, n_rows)
        self._packed(weights).forward(
            x.reshape(total, n_features), starts, counts, 0, n_steps, 0, initial[0][0], c_rows,
            sites,
            self._empty(kernels.window_rows(n_rows), self.cell.gates),
            self._empty(n_rows, self.cell.gates),
            self._empty(n_rows, 3) if self.classic else None, h, c_rows, None,
            self._empty(n_rows, 1) if self.classic else None, self._scratch(1, sites),
            False, False, False, 8 if n_rows >= 16 else 1, False, 1,
        )  # fmt: skip
        y = h.reshape(n_steps, n_rows, size)
        last = y[-1:].copy()
        return y, (last, c) if self.lstm else last

    def _sites(self, normalizers: Mapping[str, Normalizer]) -> tuple[Any, ...] | None:
        """Return what the kernels take of the normalizers for inference, or None."""
        quick = self._quick
        if quick is None or not quick.fits():
            quick = self._quick = _Quick.of(self.cell, self.dtype, normalizers)
        return None if quick is None else quick.sites

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
        saved |= self._allocate(total, sizes)
        # Not kept: what nobody asks for again, such as h and tanh(c) of a plain LSTM.
        if "products" not in sizes:
            saved["products"] = self._empty(len(state[0]), gates)
        if "inputs" not in sizes:
            saved["inputs"] = self._empty(kernels.window_rows(len(state[0])), gates)
        if "h" not in sizes:
            saved |= self._allocate(total, {"h": 1})
        if plain and not self.vanilla:
            saved["gates"] = saved["inputs"]  # they may take the place of the products
        caches = {
            name: np.empty((total, rows_of.cache_size)) if rows_of.cache_size else None
            for name, rows_of in functions.items()
        }
        sites = _describe(functions, normalizers, caches)
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
        d_gates = self._empty(n_rows, 2) if self.classic else None
        d_reset_h = self._empty(n_rows, 1) if self.classic else None
        block = max(4, -(-n_rows // 16))
        places, n_sums = _places(len(cache.bias), functions)
        sums = np.zeros((max(1, -(-n_rows // block)), n_sums))
        sites = _describe(functions, cache.normalizers, cache.caches)
        zero = np.zeros(1, self.dtype)
        weight_ih, weight_hh = cache.weights
        plan = kernels.Plan(self.kind, weight_ih, weight_hh, zero, zero, cache.bias, True)
        packed_ih = product_kernels.pack(weight_ih)
        columns, n_threads = self._threads(schedule, n_rows)
        scratch = self._scratch(n_threads, sites)
        starts, counts = schedule.starts_array, schedule.counts_array
        weights = WeightGradients(cell, weight_ih, weight_hh)
        dx = np.empty((schedule.total, self.input_size), self.dtype)
        parts = list(self._parts(schedule, n_rows, BACKWARD_ROWS))
        most = max((schedule.rows(*part) for part in parts), default=0)
        # Without normalizers the products with x and with h have the same gradient.
        shared = self.vanilla or (
            self.lstm and all(rows_of.forward is None for rows_of in functions.values())
        )
        d_inputs = self._empty(most, cell.gates)
        d_products = d_inputs if shared else self._empty(most, cell.gates)
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

    def _forward(
        self,
        plan: kernels.Plan,
        rows: Array,
        state: State,
        schedule: Schedule,
        saved: Mapping[str, Any],
        sites: tuple[Any, ...],
        step: int,
        training: bool,
        kept: Container[str] = (),
    ) -> None:
        n_rows = len(state[0])
        columns, n_threads = self._threads(schedule, n_rows)
        block = 8 if n_rows >= 16 * n_threads else 1
        scratch = self._scratch(n_threads, sites)
        reset_h = self._empty(n_rows, 1) if self.classic else None
        starts, counts = schedule.starts_array, schedule.counts_array
        for first, stop in self._parts(schedule, n_rows):
            plan.forward(
                rows, starts, counts, first, stop, step, state[0],
                state[1] if len(state) > 1 else None, sites, saved["inputs"], saved["products"],
                saved["gates"], saved["h"], saved["c"], saved["extra"], reset_h, scratch,
                training, "products" in kept, "inputs" in kept, block, columns, n_threads,
            )  # fmt: skip

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

    def _packed(self, weights: tuple[Array, Array, Array, Array]) -> kernels.Plan:
        """Return the packed weights: those of the last call if the values are still the same."""
        plan = self._plan
        if plan is None or not plan.fits(*weights, get_num_threads()):
            # Copies: another thread may change the weights meanwhile, and then these do not fit.
            weight_ih, weight_hh, bias_ih, bias_hh = (array.copy() for array in weights)
            bias = self.cell.merge_biases(bias_ih, bias_hh)
            plan = kernels.Plan(self.kind, weight_ih, weight_hh, bias_ih, bias_hh, bias, False)
            self._plan = plan
        return plan

    def _allocate(self, rows: int, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Arrays (rows, size · H) by name, in one block, whose memory may have been used before."""
        widths = {name: size * self.cell.hidden_size for name, size in sizes.items()}
        lengths = [-(-rows * width // 16) * 16 for width in widths.values()]
        ends = list(itertools.accumulate(lengths))
        block = buffers.aligned_like(np.empty(ends[-1], self.dtype))
        return {
            name: block[end - length :][: rows * width].reshape(rows, width)
            for (name, width), length, end in zip(widths.items(), lengths, ends, strict=True)
        }

    def _empty(self, rows: int, gates: int) -> Array:
        return np.empty((rows, gates * self.cell.hidden_size), self.dtype)

    def _scratch(self, n_threads: int, sites: tuple[Any, ...]) -> Array:
        """Each thread's scratch, with room for a row's cache of any site."""
        cache_bytes = 8 * max(cache_size for *_, cache_size, _ in sites)
        width = SCRATCH * self.cell.hidden_size + cache_bytes // self.dtype.itemsize
        return np.empty((n_threads, width), self.dtype)

    def _step_products(self, n_rows: int) -> int:
        """Multiply-adds of one time step."""
        gates = self.cell.gates * self.cell.hidden_size
        return n_rows * gates * (self.input_size + self.cell.hidden_size)

    def _step_work(self, n_rows: int) -> int:
        """What one time step takes, in multiply-adds: no less, if threads do not share it."""
        elements = n_rows * self.cell.gates * self.cell.hidden_size
        return (
            self._step_products(max(n_rows, WEIGHT_ROWS))
            + elements * ELEMENT_PRODUCTS
            + n_rows * ROW_PRODUCTS
        )

    def _parts(
        self, schedule: Schedule, n_rows: int, most_rows: int = sys.maxsize
    ) -> Iterator[tuple[int, int]]:
        """Yield first and last + 1 of the time steps of each call, of about most_rows at most."""
        n_steps = len(schedule.counts_array)
        length = CALL_PRODUCTS // self._step_work(n_rows)
        length = max(1, min(length, most_rows // max(1, n_rows)))
        for first in range(0, n_steps, length):
            yield first, min(first + length, n_steps)

    def _threads(self, schedule: Schedule, n_rows: int) -> tuple[bool, int]:
        """Whether threads share the columns of the products, not the rows; and how many."""
        n_threads = get_num_threads()
        per_step = self._step_products(n_rows)
        work = per_step * schedule.total // max(1, n_rows)
        if n_threads == 1 or work < 2 * SHARED_PRODUCTS:
            return False, 1
        if n_rows >= FEW_ROWS * n_threads:
            return False, min(n_threads, work // SHARED_PRODUCTS)
        if per_step >= 2 * SHARED_STEP_PRODUCTS:
            return True, min(n_threads, per_step // SHARED_STEP_PRODUCTS)
        return False, max(1, min(n_threads, n_rows // FEW_ROWS))


class _Quick(NamedTuple):
    """Row functions that stay as they are while the normalizers have the same parameters."""

    sites: tuple[Any, ...]
    owners: tuple[tuple[Normalizer, tuple[Any, ...], tuple[Array, ...]], ...]
    made: tuple[tuple[Normalizer, RowFunctions], ...]  # of values that may change, by these

    def fits(self) -> bool:
        """Whether the normalizers are as they were."""
        if not same_normalizers(self.owners):
            return False
        for normalizer, rows in self.made:
            if normalizer.row_functions(training=False) is not rows:
                return False
        return True

    @classmethod
    def of(
        cls, cell: Cell, dtype: np.dtype[Any], normalizers: Mapping[str, Normalizer]
    ) -> "_Quick | None":
        functions = row_functions(cell, dtype, normalizers, training=False)
        if isinstance(functions, str):
            return None
        owners, made = [], []
        for name, rows_of in functions.items():
            normalizer = normalizers[name]
            own = tuple(normalizer.parameters.values())
            for array in rows_of.parameters:
                if array is not None and not any(array is one for one in own):
                    made.append((normalizer, rows_of))
                    break
            owners.append((normalizer, tuple(vars(normalizer).values()), own))
        return cls(_describe(functions, normalizers, None), tuple(owners), tuple(made))


@functools.lru_cache(maxsize=64)
def _every_row(n_steps: int, n_rows: int) -> tuple[Array, Array]:
    """Starts and counts of the packed rows of whole sequences."""
    arrays = np.arange(n_steps, dtype=np.intp) * n_rows, np.full(n_steps, n_rows, np.intp)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _kind(cell: Cell) -> str:
    """The name of a cell among the kernels."""
    if isinstance(cell, Vanilla):
        return "relu" if cell.relu else "tanh"
    return (
        "classic gru"
        if isinstance(cell, ClassicGRU)
        else "gru"
        if isinstance(cell, GRU)
        else "lstm"
    )


def _describe(
    functions: Mapping[str, RowFunctions],
    normalizers: Mapping[str, Normalizer],
    caches: Mapping[str, npt.NDArray[np.float64] | None] | None,
) -> tuple[Any, ...]:
    """What `kernels.Plan.forward` wants to know of each site; without caches for inference."""
    return tuple(
        (
            rows_of.forward,
            rows_of.backward,
            getattr(rows_of.forward, "rows", None),
            normalizers[name].features,
            rows_of.parameters,
            normalizers[name].eps,
            rows_of.cache_size,
            None if caches is None else caches[name],
        )
        for name, rows_of in functions.items()
    )


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
