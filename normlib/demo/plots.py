"""The demo's pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from normlib.demo.results import Run

__all__ = ["hidden_states", "learning_curves"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GREY = "#767676"
DPI = 110


def learning_curves(runs: list[Run], title: str, path: Path) -> None:
    """Draw loss and test accuracy over the epochs: the mean of the runs, and all within a band."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for norm, colour, own in _by_norm(runs):
        for axes, name in ((left, "loss"), (right, "test_accuracy")):
            # A run that was cut short ends where it ends: only what all of them have is compared.
            curves = np.array([c for _, *c in zip(*[[0]], strict=True)]) if not own else None
            del curves
            n_epochs = min(len(run.epochs) for run in own)
            values = np.array([run.curve(name)[:n_epochs] for run in own])
            epochs = np.arange(1, n_epochs + 1)
            axes.plot(epochs, values.mean(0), color=colour, label=norm, marker=_marker(n_epochs))
            if len(own) > 1:
                axes.fill_between(
                    epochs, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0
                )
    _finish(left, "epoch", "training loss")
    _finish(right, "epoch", "test accuracy")
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.axhline(0.1, color=GREY, linestyle=":", linewidth=1)
    right.annotate("chance", (1, 0.1), (0, 3), textcoords="offset points", color=GREY, fontsize=9)
    right.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)
