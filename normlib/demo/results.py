"""What the demo measures, and how it is summed up."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from normlib.demo.train import Epoch
from normlib.diagnostics import HiddenState

__all__ = ["Run", "Summary", "as_dict", "by_norm", "summarize"]


@dataclass
class Run:
    """The training of one network; `after` is None until it has ended."""

    norm: str
    seed: int
    before: HiddenState
    epochs: list[Epoch] = field(default_factory=list)
    after: HiddenState | None = None

    def curve(self, name: str) -> list[float]:
        """Return one figure of every epoch, such as "loss"."""
        return [getattr(epoch, name) for epoch in self.epochs]

    def epochs_to(self, target: float) -> int | None:
        """Return the first epoch, counted from 1, with that test accuracy."""
        reached = (i for i, epoch in enumerate(self.epochs, 1) if epoch.test_accuracy >= target)
        return next(reached, None)


@dataclass(frozen=True)
class Summary:
    """The runs with one normalizer.

    Attributes
    ----------
    norm : str
    runs : int
        How many were completed. With 0, the figures are those of one that was cut short.
    test_accuracy : float
        After the last epoch, the mean over runs.
    spread : float or None
        Its standard deviation over runs; None for a single run.
    epochs_to_target : float or None
        The median over runs; None if half of them or more never reached the target.
    seconds_per_epoch : float
        The median over all epochs.
    """

    norm: str
    runs: int
    test_accuracy: float
    spread: float | None
    epochs_to_target: float | None
    seconds_per_epoch: float


def by_norm(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs by normalizer. One that was cut short counts only where none is complete."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.norm, []).append(run)
    return {
        norm: [run for run in group if run.after is not None] or group
        for norm, group in groups.items()
    }


def summarize(runs: list[Run], target: float) -> list[Summary]:
    """Sum up the runs by normalizer, in the order in which they were run."""
    return [_summarize(group, target) for group in by_norm(runs).values()]


def _summarize(runs: list[Run], target: float) -> Summary:
    accuracies = [run.epochs[-1].test_accuracy for run in runs]
    reached = [run.epochs_to(target) or math.inf for run in runs]
    # Of an even number of runs, the upper of the two in the middle: half infinite is infinite.
    middle = sorted(reached)[len(reached) // 2]
    return Summary(
        norm=runs[0].norm,
        runs=sum(run.after is not None for run in runs),
        test_accuracy=float(np.mean(accuracies)),
        spread=float(np.std(accuracies, ddof=1)) if len(runs) > 1 else None,
        epochs_to_target=None if math.isinf(middle) else middle,
        seconds_per_epoch=float(np.median([s for run in runs for s in run.curve("seconds")])),
    )


def as_dict(runs: list[Run], target: float) -> dict[str, Any]:
    """Return summary and curves by normalizer, ready for JSON."""
    results: dict[str, Any] = {}
    for summary in summarize(runs, target):
        fields = asdict(summary)
        norm = fields.pop("norm")
        own = [run for run in runs if run.norm == norm]
        results[norm] = {"summary": fields, "runs": [_run_as_dict(run, target) for run in own]}
    return results


def _run_as_dict(run: Run, target: float) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "curves": {name: _finite(run.curve(name)) for name in Epoch.__dataclass_fields__},
        "final_test_accuracy": run.epochs[-1].test_accuracy,
        "epochs_to_target": run.epochs_to(target),
        "seconds_per_epoch": float(np.median(run.curve("seconds"))),
        "hidden_state": {
            "before": _state_as_dict(run.before),
            "after": None if run.after is None else _state_as_dict(run.after),
        },
    }


def _state_as_dict(state: HiddenState) -> dict[str, list[float | None]]:
    return {name: _finite(values.tolist()) for name, values in state._asdict().items()}


def _finite(values: list[float]) -> list[float | None]:
    """Put None, JSON's null, where training has diverged: JSON knows no NaN."""
    return [value if math.isfinite(value) else None for value in values]
