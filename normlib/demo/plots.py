"""The demo's pictures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from normlib.demo.data import CLASSES
from normlib.demo.results import Run, by_norm
from normlib.diagnostics.plots import DPI, GREY, band, bare, colour

__all__ = ["hidden_states", "learning_curves"]


def learning_curves(runs: list[Run], title: str, path: Path) -> None:
    """Draw loss and test accuracy by epoch: the mean of the runs, in a band that holds them all."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = by_norm(runs)
    for place, (norm, own) in enumerate(groups.items()):
        for axes, name in ((left, "loss"), (right, "test_accuracy")):
            values = np.array([run.curve(name) for run in own])
            epochs = np.arange(1, values.shape[1] + 1)
            band(axes, epochs, values, norm, place, marker=".")
    left.set_ylabel("training loss (cross-entropy)")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    right.set_ylabel("test accuracy")
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.axhline(1 / CLASSES, color=GREY, linestyle=":", linewidth=1)
    right.text(
        0.99, 1 / CLASSES - 0.05, "chance", color=GREY, ha="right", transform=right.transAxes
    )
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        bare(axes)
    n_runs = max(len(own) for own in groups.values())
    figure.suptitle(title if n_runs == 1 else f"{title}: mean and range of {n_runs} runs")
    figure.savefig(path, dpi=DPI)


def hidden_states(runs: list[Run], title: str, path: Path) -> None:
    """Draw mean ± spread of the hidden state by time step, of each normalizer's first run."""
    firsts = {norm: own[0] for norm, own in by_norm(runs).items()}
    figure = Figure(figsize=(max(6.0, 3 * len(firsts)), 5), layout="constrained")
    grid = figure.subplots(2, len(firsts), sharex=True, sharey=True, squeeze=False)
    for place, (column, (norm, run)) in enumerate(zip(grid.T, firsts.items(), strict=True)):
        column[0].set_title(norm, color=colour(place))
        column[1].set_xlabel("time step")
        for axes, state in zip(column, (run.before, run.after), strict=True):
            if state is None:  # cut short
                axes.text(
                    0.5, 0.5, "not reached", color=GREY, ha="center", transform=axes.transAxes
                )
                continue
            steps = np.arange(1, len(state.mean) + 1)
            low, high = state.mean - state.spread, state.mean + state.spread
            axes.fill_between(steps, low, high, color=colour(place), alpha=0.25, linewidth=0)
            axes.plot(steps, state.mean, color=colour(place))
            axes.margins(x=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 4, 8]))
            bare(axes)
    grid[0, 0].set_ylabel("before training")
    grid[1, 0].set_ylabel("after training")
    figure.suptitle(f"{title}\nhidden state, mean ± standard deviation over images and units")
    figure.savefig(path, dpi=DPI)
