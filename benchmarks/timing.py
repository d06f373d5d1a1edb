"""How long calls take: contestants in turn, round after round, and the median of each."""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

__all__ = ["Race", "Run", "race"]

Run: TypeAlias = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

# Seconds of one measurement, and of a contestant's turn. Short measurements, many a turn: where
# another process takes the core, a scheduler's tick spoils one of them, not the turn.
SAMPLE, TURN = 1e-4, 1e-3
# Before a turn, so many calls are not timed, as far as they fit into so many seconds, but at least
# one; none of a call that takes LONG. A call that reads its arrays once needs four of them until
# those of 20 MB are back in a cache of 32, one that reads them twice needs two.
SETTLING, SETTLED, LONG = 5, 3e-3, 1e-2
# OpenMP threads spin for some milliseconds after a parallel region, and would take a core from the
# next contestant.
PAUSE = 0.01
WARM_UP = 0.1
MIN_ROUNDS, MAX_ROUNDS = 3, 41


@dataclass(frozen=True)
class Race(Generic[Name]):
    """Median and least seconds of a call of each; others: cores busy with other processes."""

    seconds: dict[Name, float]
    best: dict[Name, float]
    others: float | None


@dataclass
class _Runner:
    run: Run
    samples: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of one call, warm

    def warm_up(self) -> None:
        """Call until the time of a call has stopped falling."""
        best = float("inf")
        deadline = time.perf_counter() + WARM_UP
        while True:
            before = best
            for _ in range(3):
                best = min(best, _timed(self.run, 1))
                if time.perf_counter() > deadline:
                    self.seconds = best
                    return
            if best > 0.95 * before:
                self.seconds = best
                return

    @property
    def calls(self) -> int:
        """In one measurement."""
        return max(1, round(SAMPLE / self.seconds))

    @property
    def turn(self) -> float:
        """Seconds that a turn takes."""
        return max(TURN, self.seconds) + self.settling * self.seconds

    @property
    def settling(self) -> int:
        """Calls before a turn: its data back into the cache, its threads awake."""
        if self.seconds >= LONG:
            return 0
        return max(1, min(SETTLING, round(SETTLED / self.seconds)))

    def take_turn(self) -> None:
        for _ in range(self.settling):
            self.run()
        calls = self.calls
        self.samples += [
            _timed(self.run, calls) for _ in range(max(1, round(TURN / (calls * self.seconds))))
        ]


def _timed(run: Run, calls: int) -> float:
    """Seconds of a call."""
    repeat = range(calls)
    start = time.perf_counter()
    for _ in repeat:
        run()
    return (time.perf_counter() - start) / calls


def _busy() -> float | None:
    """CPU seconds that everything on this machine has used; None where it does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft_irq, *_ = map(int, fields)
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def race(runs: Mapping[Name, Run], budget: float, pause: bool) -> Race[Name]:
    """Time contestants in turn.

    Each gets an equal share of `budget` seconds, and as many turns as fit, spread evenly over the
    rounds; those that are fast take part in every round, in random order.

    Parameters
    ----------
    runs : mapping of names to callables
        The contestants.
    budget : float
        Seconds to spend, about; at least `MIN_ROUNDS` rounds are run.
    pause : bool
        Rest between turns: where threads may be spinning.
    """
    rest = PAUSE if pause else 0
    runners = {name: _Runner(run) for name, run in runs.items()}
    busy, own, start = _busy(), time.process_time(), time.perf_counter()
    for runner in runners.values():
        time.sleep(rest)
        runner.warm_up()
    share = budget / max(1, len(runners))
    turns = {
        name: round(min(max(share / (rest + runner.turn), MIN_ROUNDS), MAX_ROUNDS))
        for name, runner in runners.items()
    }
    rounds = max(turns.values(), default=0)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        for place in range(rounds):
            order = [
                name for name, n in turns.items() if (place + 1) * n // rounds > place * n // rounds
            ]
            shuffle(order)
            for name in order:
                time.sleep(rest)
                runners[name].take_turn()
    finally:
        if collecting:
            gc.enable()
    others = None
    now = _busy()
    if busy is not None and now is not None:
        used = now - busy - (time.process_time() - own)
        others = max(0.0, used / (time.perf_counter() - start))
    seconds = {name: statistics.median(runner.samples) for name, runner in runners.items()}
    best = {name: min(runner.samples) for name, runner in runners.items()}
    return Race(seconds, best, others)
