"""Pictures of what `normlib.diagnostics` measures (extra: ``normlib[plots]``)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"normlib.diagnostics.plots needs {error.name}, which is not installed: "
        "pip install 'normlib[plots]'",
        name=error.name,
    ) from error

from normlib.diagnostics.gradients import GradientNorms
from normlib.diagnostics.hidden import HiddenState

__all__ = [
    "COLOURS",
    "DPI",
    "GREY",
    "band",
    "bare",
    "colour",
    "plot_gradients",
    "plot_hidden_states",
]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
GREY = "#666666"
DPI = 110

_NAMES = {
    "norm": "norm of a row",
    "mean": "mean",
    "spread": "standard deviation",
    "saturation": "share saturated",
}


def plot_hidden_states(
    states: Mapping[str, HiddenState | Sequence[HiddenState]], axes: Sequence[Axes] | None = None
) -> Figure:
    """Draw norm, mean, spread and saturation over time steps, one line for each entry.

    Parameters
    ----------
    states : mapping of str to HiddenState, or to a sequence of them
        By label. Of several runs, the mean is drawn, in a band that holds them all.
    axes : sequence of four matplotlib axes, optional
        Where to draw; a new figure if not given.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.diagnostics import hidden_state, plots
    >>> y = np.random.default_rng(0).standard_normal((9, 4, 3))
    >>> figure = plots.plot_hidden_states({"noise": hidden_state(y)})
    >>> len(figure.axes)
    4
    """
    if axes is None:
        axes = Figure(figsize=(12, 3), layout="constrained").subplots(1, 4)
    for one, (field, title) in zip(axes, _NAMES.items(), strict=True):
        for place, (label, runs) in enumerate(states.items()):
            several = [runs] if isinstance(runs, HiddenState) else list(runs)
            values = np.array([getattr(state, field) for state in several])
            band(one, np.arange(1, values.shape[1] + 1), values, label, place)
        one.set_title(title, fontsize="medium")
        one.set_xlabel("time step")
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        bare(one)
    axes[0].legend(frameon=False)
    axes[0].set_ylim(bottom=0)
    axes[3].set_ylim(0, max(0.05, axes[3].get_ylim()[1]))
    return _figure(axes[0])


def plot_gradients(
    norms: Mapping[str, GradientNorms | Sequence[GradientNorms]],
    axes: Axes | None = None,
    *,
    layer: int = -1,
) -> Figure:
    """Draw the gradient's norm by steps back from the last one, relative to its value there.

    Parameters
    ----------
    norms : mapping of str to GradientNorms, or to a sequence of them
        By label; measured with a gradient at the last time step alone. Of several runs, the
        geometric mean is drawn, in a band that holds them all.
    axes : matplotlib axes, optional
        Where to draw; a new figure if not given.
    layer : int, default -1
        Which layer's hidden state.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if axes is None:
        axes = Figure(figsize=(5, 3.5), layout="constrained").subplots()
    for place, (label, runs) in enumerate(norms.items()):
        several = [runs] if isinstance(runs, GradientNorms) else list(runs)
        values = np.array([run.h[layer, ::-1] / run.h[layer, -1] for run in several])
        values = np.maximum(values, np.finfo(np.float64).tiny)
        band(axes, np.arange(values.shape[1]), np.log10(values), label, place)
    axes.set_xlabel("time steps back")
    axes.set_ylabel("|dL/dh|, relative to the last step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(frameon=False)
    bare(axes)
    return _figure(axes)


def colour(place: int) -> str:
    """Return the colour of the entry at this place."""
    return COLOURS[place % len(COLOURS)]


def bare(axes: Axes) -> None:
    """Take what is not data off axes, and put thin lines behind it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)


def band(
    axes: Axes, x: npt.ArrayLike, runs: npt.ArrayLike, label: str, place: int, **style: Any
) -> None:
    """Draw the mean of runs, shape (runs, points), in a band that holds them all."""
    array = np.asarray(runs)
    low, high = array.min(axis=0), array.max(axis=0)
    axes.fill_between(x, low, high, color=colour(place), alpha=0.15, linewidth=0)
    axes.plot(x, array.mean(axis=0), color=colour(place), label=label, **style)


def _figure(axes: Axes) -> Figure:
    figure: Figure = axes.figure.figure  # the outermost, if it is one of several within
    return figure
