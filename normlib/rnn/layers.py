"""All layers and directions of a network, one after the other, forward and backward.

Arguments have been checked: arrays are C-contiguous, aligned and of the network's dtype.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels.buffers import aligned_like
from normlib.normalizers.base import Normalizer
from normlib.rnn.architecture import Architecture
from normlib.rnn.cells import add_to
from normlib.rnn.direction import AnyCache, Direction
from normlib.rnn.sequence import Schedule, schedule_of

__all__ = ["Layers"]

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = tuple[Array, ...]
Run: TypeAlias = Callable[[Direction, Array, State, Schedule], tuple[Array, State]]
RunPlain: TypeAlias = Callable[..., tuple[Array, Any] | None]


class Layers:
    """The layers of a network; each reads the output of the one below.

    Parameters
    ----------
    architecture : Architecture
    create : callable
        ``create(features, bias=...)`` makes a normalizer.
    rng : numpy.random.Generator
        Draws the weights.

    Attributes
    ----------
    cell : Cell
    directions : list of Direction
        In the order of the state: each layer's forward one, then, if there is one, its reverse.
    """

    def __init__(
        self,
        architecture: Architecture,
        create: Callable[..., Normalizer],
        rng: np.random.Generator,
    ) -> None:
        self.cell = architecture.create_cell()
        self.num_directions = architecture.num_directions
        self.output_size = architecture.output_size
        self.dtype = architecture.dtype
        self.directions = [
            Direction(self.cell, size, suffix, create, rng, self.dtype)
            for suffix, size in architecture.directions()
        ]

    def infer(
        self, x: Array, initial: list[Array], lengths: Array | None, first_step: int = 0
    ) -> tuple[Array, list[Array]]:
        """Run for inference: y and the final state."""

        def run(
            one: Direction, rows: Array, state: State, schedule: Schedule
        ) -> tuple[Array, State]:
            return one.infer(rows, state, schedule, first_step)

        return self._run(run, x, initial, lengths, own=False)

    def run(self, x: object, state: object) -> tuple[Array, Any] | None:
        """Run for inference with arguments as `RNN` takes them; None unless all is plain."""
        return self._run_plain(Direction.run, x, state)

    def step(self, x: object, state: object, number: int) -> tuple[Array, Any] | None:
        """Run one time step of arguments as `RNN.step` takes them; None unless all is plain."""
        return self._run_plain(Direction.step, x, state, number)

    def forward(
        self, x: Array, initial: list[Array], lengths: Array | None
    ) -> tuple[Array, list[Array], list[AnyCache]]:
        """Run for training: y, the final state, and what `backward` needs; that may keep x."""
        caches: list[AnyCache] = []

        def run(
            one: Direction, rows: Array, state: State, schedule: Schedule
        ) -> tuple[Array, State]:
            h, state, cache = one.forward(rows, state, schedule)
            caches.append(cache)
            return h, state

        y, final = self._run(run, x, initial, lengths, own=True)
        return y, final, caches

    def gather(
        self,
        x: Array,
        initial: list[Array],
        lengths: Array | None,
        twins: Mapping[str, Normalizer],
    ) -> tuple[Array, list[Array]]:
        """Run as for training, but without a cache: y and the final state.

        ``twins`` are normalizers by site, which gather the statistics.
        """

        def run(
            one: Direction, rows: Array, state: State, schedule: Schedule
        ) -> tuple[Array, State]:
            return one.gather(rows, state, schedule, twins)

        return self._run(run, x, initial, lengths, own=False)

    def backward(
        self,
        d_output: Array,
        d_final: list[Array],
        caches: list[AnyCache],
    ) -> tuple[Array, list[Array], dict[str, Array]]:
        """Return the gradients of x, of the initial state, and of all parameters by name."""
        n_steps, n_batch = d_output.shape[:2]
        d_initial = [np.empty_like(array) for array in d_final]
        grads: dict[str, Array] = {}
        places = range(len(self.directions))
        for first in reversed(places[:: self.num_directions]):
            layer = self.directions[first : first + self.num_directions]
            d_input = np.zeros((n_steps, n_batch, layer[0].input_size), self.dtype)
            for index, one in reversed(list(enumerate(layer))):
                place = first + index
                schedule = caches[place].schedule
                d_rows, d_state, d_parameters = one.backward(
                    schedule.gather(self._part(d_output, index)),
                    tuple(schedule.sort(array[place]) for array in d_final),
                    caches[place],
                )
                add_to(d_input, schedule.scatter(d_rows))
                for array, rows in zip(d_initial, d_state, strict=True):
                    schedule.unsort(rows, array[place])
                grads.update(d_parameters)
            d_output = d_input
        return d_output, d_initial, grads

    def _run_plain(
        self, run: RunPlain, x: object, state: object, *arguments: int
    ) -> tuple[Array, Any] | None:
        n_states = len(self.directions)
        if n_states == 1:
            return run(self.directions[0], x, state, *arguments)
        parts = state if type(state) is tuple else () if state is None else (state,)
        for part in parts:
            if type(part) is not np.ndarray or part.shape[:1] != (n_states,):
                return None
        y: Any = x
        results: list[Any] = []
        for first in range(0, n_states, self.num_directions):
            outputs = []
            for place in range(first, first + self.num_directions):
                own: Any = tuple(part[place : place + 1] for part in parts)
                if type(state) is not tuple:
                    own = own[0] if own else None
                backwards = place > first
                if backwards:
                    y = y[::-1].copy()
                result = run(self.directions[place], y, own, *arguments)
                if result is None:
                    return None
                outputs.append(result[0][::-1] if backwards else result[0])
                results.append(result[1])
            y = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=2)
        if len(self.cell.carries) == 1:
            return y, np.concatenate(results)
        return y, tuple(map(np.concatenate, zip(*results, strict=True)))

    def _run(
        self,
        run: Run,
        x: Array,
        initial: Iterable[Array],
        lengths: Array | None,
        *,
        own: bool,
    ) -> tuple[Array, list[Array]]:
        """Run each direction in turn; ``own``: y must be nobody else's than the caller's."""
        n_steps, n_batch = x.shape[:2]
        schedules = [
            schedule_of(n_steps, n_batch, lengths, reverse=bool(index))
            for index in range(self.num_directions)
        ]
        final = [np.empty_like(array) for array in initial]
        for first in range(0, len(self.directions), self.num_directions):
            y = None
            last = first + self.num_directions == len(self.directions)
            # Only the last layer's output is anybody else's than the cache's.
            if self.num_directions > 1 or (own and last):
                shape = (n_steps, n_batch, self.output_size)
                y = aligned_like(np.empty(shape, self.dtype))
            for index, schedule in enumerate(schedules):
                place = first + index
                rows = schedule.gather(x)
                state = tuple(schedule.sort(array[place]) for array in initial)
                h, state = run(self.directions[place], rows, state, schedule)
                if y is None:
                    x = schedule.scatter(h)
                else:
                    self._part(y, index)[...] = schedule.scatter(h)
                for array, sorted_rows in zip(final, state, strict=True):
                    schedule.unsort(sorted_rows, array[place])
            if y is not None:
                x = y
        return x, final

    def _part(self, y: Array, index: int) -> Array:
        """Return the features of an output that belong to one direction."""
        size = self.cell.hidden_size
        return y[:, :, index * size : (index + 1) * size]
