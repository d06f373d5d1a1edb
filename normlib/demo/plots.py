"""The demo's pictures."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from normlib.demo.data import CLASSES
from normlib.demo.results import Run, by_norm
from normlib.demo.train import HiddenState

__all__ = ["hidden_states", "learning_curves"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GREY = "#666666"
DPI = 110


def learning_curves(runs: list[Run], title: str, path: Path) -> None:
    """Draw loss and test accuracy by epoch: the mean of the runs, in a band that holds them all."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (norm, own) in enumerate(by_norm(runs).items()):
        colour = COLOURS[place % len(COLOURS)]
        for axes, name in ((left, "loss"), (right, "test_accuracy")):
            values = np.array([run.curve(name) for run in own])
            epochs = np.arange(1, values.shape[1] + 1)
            axes.plot(epochs, values.mean(axis=0), color=colour, label=norm, marker=".")
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    left.set_ylabel("training loss (cross-entropy)")
    left.set_ylim(bottom=0)
    right.set_ylabel("test accuracy")
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.axhline(1 / CLASSES, color=GREY, linestyle=":", linewidth=1)
    right.annotate("chance", (1, 1 / CLASSES), (0, 3), textcoords="offset points", color=GREY)
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _bare(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def hidden_states(runs: list[Run], title: str, path: Path) -> None:
    """Draw mean ± spread of the hidden state by time step, of each normalizer's first run."""
    firsts = {norm: own[0] for norm, own in by_norm(runs).items()}
    figure = Figure(figsize=(max(5.0, 3 * len(firsts)), 4), layout="constrained")
    panels = figure.subplots(1, len(firsts), sharex=True, sharey=True, squeeze=False)[0]
    for place, (axes, (norm, run)) in enumerate(zip(panels, firsts.items(), strict=True)):
        _band(axes, run.before, GREY, "before training")
        if run.after is not None:
            _band(axes, run.after, COLOURS[place % len(COLOURS)], "after training")
        axes.set_title(norm)
        axes.set_xlabel("time step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="upper left")
        axes.margins(x=0)
        _bare(axes)
    panels[0].set_ylabel("hidden state, mean ± std")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def _band(axes: Axes, state: HiddenState, colour: str, label: str) -> None:
    steps = np.arange(1, len(state.mean) + 1)
    low, high = state.mean - state.spread, state.mean + state.spread
    axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(steps, state.mean, color=colour, label=label)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
