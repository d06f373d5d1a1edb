"""The loop over time without Python, for inference: normalizers with compiled row functions.

Design
------
The kernels of `normlib._kernels.recurrent` run many time steps of one direction in one call, with
the products, the cell and the normalizers fused. Here is what they need: packed weights, which are
kept while the weights have the same bits, threads, and parts; `normlib.rnn.fused_training` has what
training needs beside. Which normalizers have row functions, `row_functions` finds out;
`normlib.rnn.direction` runs all others step by step.

A call does a bounded part of the sequence, so that Python can look at signals in between: Ctrl-C
ends a long run after the part it is in.
"""

import functools
import sys
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import buffers
from normlib._kernels import recurrent as kernels
from normlib._kernels.changes import same_normalizers
from normlib.normalizers.base import ROW_METHODS, Normalizer
from normlib.normalizers.rows import RowFunctions, check_rows
from normlib.rnn.cells import GRU, LSTM, Cell, ClassicGRU, Vanilla
from normlib.rnn.sequence import Schedule
from normlib.threads import get_num_threads

__all__ = ["Fused", "describe", "row_functions"]

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
# Rows of all steps in a call that is checked in one go.
SHORT_ROWS = 1024
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
            "inputs": self.empty(kernels.window_rows(rows_now), self.cell.gates),
            "products": self.empty(rows_now, self.cell.gates),
            "gates": self.empty(rows_now, 3) if self.classic else None,
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
        h = self.empty(total, 1)
        c = initial[1].copy() if self.lstm else None
        c_rows = None if c is None else c[0]
        starts, counts = _every_row(n_steps, n_rows)
        self._packed(weights).forward(
            x.reshape(total, n_features), starts, counts, 0, n_steps, 0, initial[0][0], c_rows,
            sites,
            self.empty(kernels.window_rows(n_rows), self.cell.gates),
            self.empty(n_rows, self.cell.gates),
            self.empty(n_rows, 3) if self.classic else None, h, c_rows, None,
            self.empty(n_rows, 1) if self.classic else None, self._scratch(1, sites),
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
        reset_h = self.empty(n_rows, 1) if self.classic else None
        starts, counts = schedule.starts_array, schedule.counts_array
        for first, stop in self.parts(schedule, n_rows):
            plan.forward(
                rows, starts, counts, first, stop, step, state[0],
                state[1] if len(state) > 1 else None, sites, saved["inputs"], saved["products"],
                saved["gates"], saved["h"], saved["c"], saved["extra"], reset_h, scratch,
                training, "products" in kept, "inputs" in kept, block, columns, n_threads,
            )  # fmt: skip

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

    def empty(self, rows: int, gates: int) -> Array:
        """An array (rows, gates · H)."""
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

    def step_work(self, n_rows: int) -> int:
        """What one time step takes, in multiply-adds: no less, if threads do not share it."""
        elements = n_rows * self.cell.gates * self.cell.hidden_size
        return (
            self._step_products(max(n_rows, WEIGHT_ROWS))
            + elements * ELEMENT_PRODUCTS
            + n_rows * ROW_PRODUCTS
        )

    def parts(
        self, schedule: Schedule, n_rows: int, most_rows: int = sys.maxsize
    ) -> Iterator[tuple[int, int]]:
        """Yield first and last + 1 of the time steps of each call, of about most_rows at most."""
        n_steps = len(schedule.counts_array)
        length = CALL_PRODUCTS // self.step_work(n_rows)
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
        return cls(describe(functions, normalizers, None), tuple(owners), tuple(made))


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


def describe(
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
