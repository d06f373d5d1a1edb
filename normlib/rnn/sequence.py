"""Sequences of different lengths: which rows of a batch run at which time step.

Design
------
Nothing is ever computed for a padded step. The rows of a batch are ordered by falling length, so
that those still running at a step are the first ones of the state, and the steps are laid end to
end in one array of *packed rows*: first the rows of step 0, then the fewer of step 1, and so on.
A reverse direction is the same, with each row's own last time step first. Normalizers therefore see
valid rows only, contiguous, with no mask.
"""

import functools
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Schedule", "schedule_of"]

# Time steps of all rows whose order is kept for the next call.
KEPT_STEPS = 1024

Array: TypeAlias = npt.NDArray[Any]


def schedule_of(n_steps: int, n_batch: int, lengths: Array | None, reverse: bool) -> "Schedule":
    """Return a `Schedule` of such arguments: that of an earlier call, if it is short."""
    if lengths is None or n_steps * n_batch > KEPT_STEPS:
        return Schedule(n_steps, n_batch, lengths, reverse)
    return _kept_schedule(n_steps, n_batch, lengths.tobytes(), reverse)


@functools.lru_cache(maxsize=64)
def _kept_schedule(n_steps: int, n_batch: int, lengths: bytes, reverse: bool) -> "Schedule":
    return Schedule(n_steps, n_batch, np.frombuffer(lengths, np.intp), reverse)


class Schedule:
    """The order in which the rows of a batch run, for one direction; it never changes.

    Parameters
    ----------
    n_steps, n_batch : int
        T and N of the padded batch.
    lengths : (N,) integer array or None
        Valid time steps of each row; None if all have T.
    reverse : bool
        Whether each row runs from its last valid time step to its first.

    Attributes
    ----------
    counts : list of int
        Rows at each step, falling. Steps without rows are left out.
    starts : list of int
        Where the packed rows of each step begin.
    counts_array, starts_array : arrays of intp
        The same as arrays.
    total : int
        Packed rows of all steps.

    Examples
    --------
    >>> schedule = Schedule(3, 2, np.array([1, 3]), reverse=True)
    >>> schedule.counts
    [2, 1, 1]
    >>> schedule.gather(np.array([[[10], [20]], [[11], [21]], [[12], [22]]])).ravel()
    array([22, 10, 21, 20])
    """

    def __init__(self, n_steps: int, n_batch: int, lengths: Array | None, reverse: bool) -> None:
        self.n_steps = n_steps
        self.n_batch = n_batch
        self._order = None
        self._reverse = reverse
        if lengths is None:
            steps_with_rows = n_steps if n_batch else 0
            self.total = n_steps * n_batch
            self.counts_array = np.full(steps_with_rows, n_batch, np.intp)
            self.starts_array = np.arange(steps_with_rows, dtype=np.intp) * n_batch
            return
        order = np.argsort(-lengths, kind="stable")
        counts = np.count_nonzero(lengths > np.arange(n_steps)[:, np.newaxis], axis=1)
        counts = counts[counts > 0]
        starts = np.cumsum(counts) - counts
        self.total = int(counts.sum())
        self.counts_array = counts.astype(np.intp)
        self.starts_array = starts.astype(np.intp)
        self._order = order
        steps = np.repeat(np.arange(len(counts)), counts)
        rows = order[np.arange(self.total) - starts[steps]]
        times = lengths[rows] - 1 - steps if reverse else steps
        self._index = times * n_batch + rows

    @functools.cached_property
    def counts(self) -> list[int]:
        return self.counts_array.tolist()

    @functools.cached_property
    def starts(self) -> list[int]:
        return self.starts_array.tolist()

    def gather(self, x: Array) -> Array:
        """Return the packed rows, (total, F), of ``x``, (T, N, F); a view of it if it can be.

        They are C-contiguous if ``x`` is.
        """
        if self._order is None and self._reverse:
            x = x[::-1]
        rows = x.reshape(self.n_steps * self.n_batch, x.shape[2])
        return rows if self._order is None else rows.take(self._index, axis=0)

    def scatter(self, rows: Array) -> Array:
        """Return ``x``, (T, N, F), with packed rows, (total, F), in their places; the rest zero.

        It is a view of ``rows`` if it can be.
        """
        shape = (self.n_steps, self.n_batch, rows.shape[1])
        if self._order is None:
            x = rows.reshape(shape)
            return x[::-1] if self._reverse else x
        x = np.zeros((self.n_steps * self.n_batch, rows.shape[1]), rows.dtype)
        x[self._index] = rows
        return x.reshape(shape)

    def sort(self, state: Array) -> Array:
        """Return a copy of ``state``, (N, H), with its rows in running order."""
        return state.copy() if self._order is None else state.take(self._order, axis=0)

    def unsort(self, state: Array, out: Array) -> None:
        """Write ``state``, (N, H) in running order, to ``out`` in the order of the batch."""
        out[slice(None) if self._order is None else self._order] = state

    def rows(self, first: int, stop: int) -> int:
        """Return how many packed rows steps ``first`` to ``stop`` have."""
        return self.starts[stop - 1] + self.counts[stop - 1] - self.starts[first]

    def last(self, rows: Array, initial: Array) -> Array:
        """Return, (N, H) in running order, each sequence's last row of packed ``rows``.

        A sequence without rows has that of ``initial``.
        """
        if self._order is None and self.total:
            return rows[-self.n_batch :].copy()
        last = initial.copy()
        done = 0
        for start, count in zip(reversed(self.starts), reversed(self.counts), strict=True):
            if count > done:
                last[done:count] = rows[start + done : start + count]
                done = count
            if done == self.counts[0]:
                break
        return last

    def before(
        self, rows: Array, initial: Array, first: int, stop: int, since: int = 0
    ) -> Iterator[tuple[slice, Array]]:
        """Yield, for the packed rows of steps ``first`` to ``stop``, what preceded them.

        Each time it is a slice of these rows, and the rows that came before them in their
        sequences, contiguous: of packed ``rows``, which begin with step ``since``, or of
        ``initial``, (N, H) in running order.
        """
        counts, starts = self.counts, self.starts
        step = first
        while step < stop:
            place, count = starts[step] - starts[first], counts[step]
            if step == 0:
                end, previous = 1, initial[:count]
            else:
                end = step + 1
                # Where no sequence ends in between, many steps are one piece.
                while end < stop and count == counts[step - 1] == counts[end]:
                    end += 1
                previous = rows[starts[step - 1] - starts[since] :][: (end - step) * count]
            yield slice(place, place + (end - step) * count), previous
            step = end
