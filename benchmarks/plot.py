"""The picture of a run: each contestant's speed beside that of the roofline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import OPS, format_shape
from benchmarks.peers import REFERENCE
from benchmarks.results import DTYPES, Report, Result, by_operation

__all__ = ["plot"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "normlib": "#D55E00",
    "PyTorch": "#0072B2",
    "TorchScript": "#CC79A7",
    "TorchScript at once": "#F0E442",
    "ONNX Runtime": "#56B4E9",
    "JAX": "#009E73",
    "numba": "#E69F00",
    "NumPy": "#999999",
}
ROOF = "#222222"
DPI = 110
ROW_HEIGHT = 1.9
LEGEND = 5  # entries of a line of the legend, at most


def plot(report: Report, path: Path) -> list[Path]:
    """Draw a picture for each thread count, and return where they are.

    ``run.png`` becomes ``run-1-thread.png``, ``run-2-threads.png``. Each has a row for each
    operation, in float32, or in float64 where that is all there is.
    """
    drawn = [r for r in report.results if r.roof and not r.case.operation.fixed]
    dtype = min((result.case.dtype for result in drawn), default="", key=DTYPES.index)
    paths = []
    for n_threads in sorted({result.threads for result in drawn}):
        count = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        own = path.with_stem(f"{path.stem}-{count.replace(' ', '-')}")
        group = [r for r in drawn if r.threads == n_threads and r.case.dtype == dtype]
        title = f"{dtype}, {count}, {report.head['CPU']}"
        _figure(group, title).savefig(own, dpi=DPI)
        paths.append(own)
    return paths


def _figure(results: Sequence[Result], title: str) -> Figure:
    groups = by_operation(results)
    op = results[0].case.operation
    names = [name for name in COLOURS if any(name in r.seconds for r in results)]
    # A shape has the same place in each row.
    shapes = list(dict.fromkeys(result.case.shape for result in results))
    figure = Figure(
        figsize=(max(8.0, 1 + 0.85 * len(shapes)), 1.2 + ROW_HEIGHT * len(groups)),
        layout="constrained",
    )
    rows = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, ((_, name, _), group) in zip(rows, groups.items(), strict=True):
        _draw(axes, group, names, [shapes.index(result.case.shape) for result in group])
        axes.set_xlim(-0.5, len(shapes) - 0.5)
        axes.set_title(OPS[name].title, loc="left", fontsize=10)
    # Not every row has every contestant.
    labelled: dict[str, Artist] = {}
    for axes in rows:
        handles, own = axes.get_legend_handles_labels()
        labelled.update(zip(own, handles, strict=True))
    labels = sorted(labelled, key=lambda label: (label == op.roof, ", " in label))
    n_lines = -(-len(labels) // LEGEND)
    figure.legend(
        [labelled[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=-(-len(labels) // n_lines),
        frameon=False,
        fontsize=8,
    )
    roof = "a copy" if op.roof == "copy" else "the fastest product of two matrices"
    heading = f"Speed by that of {roof}; above bars, normlib's {op.unit}"
    figure.suptitle(f"{heading}\n{title}", fontsize=10)
    return figure


def _draw(
    axes: Axes, group: Sequence[Result], names: Sequence[str], columns: Sequence[int]
) -> None:
    op = group[0].case.operation
    beside = [name for name in names if any(name in result.beside for result in group)]
    bars: list[tuple[str, bool]] = [(name, False) for name in names]
    bars += [(name, True) for name in beside]
    width = 0.86 / len(bars)
    places = np.array(columns)
    for number, (name, plain) in enumerate(bars):
        shares = [(r.plain_of_roof(name) if plain else r.of_roof(name)) or 0 for r in group]
        left = places + (number - (len(bars) - 1) / 2) * width
        axes.bar(
            left,
            shares,
            width * 0.94,
            color=COLOURS[name],
            alpha=0.4 if plain else 1,
            label=f"{name}, {op.beside_kind}" if plain else name,
        )
        if name != REFERENCE or plain:
            continue
        for x, share, result in zip(left, shares, group, strict=True):
            axes.annotate(
                _short(result.speed(name)),
                (x, share),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
            )
    axes.axhline(1, color=ROOF, linewidth=1, linestyle="--", label=op.roof)
    axes.set_xticks(
        places,
        [f"{format_shape(r.case.shape)}\n{op.roof} {_short(r.roof)}" for r in group],
        fontsize=7,
    )
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.18)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
