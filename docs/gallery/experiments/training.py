"""Training, update by update, of anything that has parameters and gives their gradients."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.demo.optimizer import Adam, clip

__all__ = ["Curve", "Model", "train"]

Array: TypeAlias = npt.NDArray[Any]


class Model(Protocol):
    """What can be trained."""

    @property
    def parameters(self) -> dict[str, Array]:
        """All that is learned, as live arrays."""

    def loss_and_gradients(self, part: Any, /) -> tuple[float, float, dict[str, Array]]:
        """Return the loss, the accuracy, and the gradients of the loss."""


@dataclass
class Curve:
    """The loss of every update, the CPU seconds that each took, and test figures along the way.

    Losses are smoothed over as many updates as ``window`` says.
    """

    window: int = 10
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tests: dict[int, float] = field(default_factory=dict)

    def smooth(self) -> Array:
        """Return the mean of each loss with up to ``window`` - 1 before it."""
        sums = np.cumsum([0.0, *self.losses])
        ends = np.arange(1, len(sums))
        starts = np.maximum(0, ends - self.window)
        smooth: Array = (sums[ends] - sums[starts]) / (ends - starts)
        return smooth

    def updates_to(self, target: float) -> float:
        """Return the updates until the smooth loss is down to the target; inf if it never is."""
        (reached,) = np.nonzero(self.smooth() <= target)
        return float(reached[0] + 1) if len(reached) else np.inf

    def seconds_to(self, target: float) -> float:
        """Return the seconds of training until then."""
        updates = self.updates_to(target)
        return float(np.sum(self.seconds[: int(updates)])) if np.isfinite(updates) else np.inf

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON: of a long curve, some hundred points."""
        smooth = self.smooth()
        every = max(1, len(smooth) // 100)
        kept = np.arange(every - 1, len(smooth), every)
        return {
            "updates": (kept + 1).tolist(),
            "loss": smooth[kept].tolist(),
            "tests": self.tests,
            "seconds_per_update": float(np.median(self.seconds)),
        }


def train(
    model: Model,
    parts: Iterable[Any],
    *,
    updates: int,
    learning_rate: float,
    max_norm: float = 1.0,
    window: int = 10,
) -> Iterator[tuple[int, Curve]]:
    """Train by Adam, in place; give the number of updates done and the curve after each.

    Time is that of gradients and updates, not of what the caller does in between; and the CPU's,
    which on one thread is what a clock shows where nothing else runs.
    """
    curve = Curve(window)
    optimizer = Adam(model.parameters, learning_rate)
    for number, part in zip(range(1, updates + 1), parts, strict=False):
        start = time.process_time()
        loss, _, grads = model.loss_and_gradients(part)
        optimizer.step(clip(grads, max_norm))
        curve.seconds.append(time.process_time() - start)
        curve.losses.append(loss)
        yield number, curve
