"""Learning curves of several runs: compared, and drawn."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.experiment import compare, mean_and_spread
from experiments.training import Curve
from normlib.diagnostics.plots import GREY, band, bare

__all__ = ["NAMES", "Runs", "curves", "less"]

Runs: TypeAlias = dict[str, list[Curve]]

NAMES = {"noop": "none", "batch": "batch norm", "layer": "layer norm", "group": "group norm"}


def less(
    runs: Runs, one: str, other: str, of: Callable[[Curve], float], unit: str = ""
) -> tuple[str, str]:
    """Return what was measured of two normalizers, and whether the first has less of it."""
    values = [[of(curve) for curve in runs[norm]] for norm in (one, other)]
    measured = "; ".join(
        f"{NAMES[norm]} {mean_and_spread(own)}{unit if np.all(np.isfinite(own)) else ''}"
        for norm, own in zip((one, other), values, strict=True)
    )
    return measured, compare(*values)


def curves(groups: Mapping[str, Runs], test: str | None, *, target: float | None = None) -> Figure:
    """Draw loss, and test figures if there are any, of each group in a row of its own."""
    columns = 1 if test is None else 2
    figure = Figure(figsize=(4.8 * columns, 3.4 * len(groups) + 0.2), layout="constrained")
    grid = figure.subplots(len(groups), columns, squeeze=False)
    for (title, runs), row in zip(groups.items(), grid, strict=True):
        for place, (norm, own) in enumerate(runs.items()):
            losses = np.array([curve.smooth() for curve in own])
            band(row[0], np.arange(1, losses.shape[1] + 1), losses, NAMES[norm], place)
            if test is not None:
                tests = np.array([list(curve.tests.values()) for curve in own])
                band(row[1], list(own[0].tests), tests, NAMES[norm], place, marker=".")
        row[0].set_ylabel("training loss")
        row[0].set_yscale("log")
        row[0].set_title(title, loc="left")
        if target is not None:
            row[0].axhline(target, color=GREY, linestyle=":", linewidth=1)
        if test is not None:
            row[1].set_ylabel(test)
            row[1].set_yscale("log")
            row[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            row[1].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            row[1].yaxis.set_minor_locator(NullLocator())
        for axes in row:
            axes.set_xlabel("updates")
            bare(axes)
    grid[0, 0].legend(frameon=False)
    return figure
