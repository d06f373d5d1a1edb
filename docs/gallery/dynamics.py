"""
Hidden dynamics, and the scale of the weights
=============================================

In a recurrent network the same weights act at every step. If they are small, the state forgets and
gradients vanish; if they are large, units saturate. The paper (§3.1) says that layer norm takes
this away: it is invariant to the scale of the summed inputs, so that hidden-to-hidden dynamics are
stable whatever the scale.

Random networks of 64 units, without training: recurrent weights are multiplied by powers of two
from 1/8 to 8, and 100 steps of noise are read. Measured are the state at the end and how much of a
gradient at the last step arrives at the first.

.. image:: /gallery/results/dynamics.png
   :alt: Gradient by step and hidden state, by the scale of the recurrent weights

.. include:: /gallery/results/dynamics.rst

Layer norm makes dynamics independent of the scale, to the bit. That alone is not good or bad: what
arrives of a gradient then depends on the gains, which are learned. With gains of 1, where layer
norm starts, it is most of it in a tanh RNN and an LSTM, and a millionth in a GRU; plain networks
come near that at one or two scales of seven. Batch norm is as independent, but starts at gains of
0.1 in a recurrent network, with which a tanh RNN forgets.

Run it with ``python docs/gallery/dynamics.py``; it takes some seconds.
"""

# %%
# The measurement
# ---------------
import argparse
import sys

import numpy as np
from experiments.curves import NAMES
from experiments.experiment import Claim, Outcome, Steps, compare, main, mean_and_spread
from matplotlib.figure import Figure

import normlib
from normlib.diagnostics import gradient_norms, hidden_state
from normlib.diagnostics.plots import band, bare

CELLS = {"rnn": "tanh RNN", "lstm": "LSTM", "gru": "GRU"}
NORMS = ("noop", "batch", "layer")
SCALES = tuple(2.0**power for power in range(-3, 4))
CASES, INPUTS = 32, 8


def look(cell: str, norm: str, scale: float, seed: int, options: argparse.Namespace) -> tuple:
    """Return the state's norm at the end, how much a gradient changes, and the state itself."""
    rng = np.random.default_rng(seed)
    rnn = normlib.RNN(
        INPUTS,
        options.hidden,
        cell=cell,
        norm=norm,
        norm_config={"eps": 0} if norm == "layer" else None,
        rng=rng,
        dtype=np.float64,
    )
    rnn.parameters["weight_hh_l0"] *= scale
    if cell == "rnn":  # one normalizer for the sum of both products
        rnn.parameters["weight_ih_l0"] *= scale
    x = rng.standard_normal((options.steps, CASES, INPUTS))
    start = rng.uniform(-0.5, 0.5, (1, CASES, options.hidden))
    state = (start, start[::-1].copy()) if cell == "lstm" else start
    y, _, _ = rnn.forward(x, state)
    dy = rng.standard_normal((CASES, options.hidden))
    h = gradient_norms(rnn, x, dy, state=state).h[0]
    return hidden_state(y).norm[-1], float(np.log10(h[0] / h[-1])), y


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Measure every cell and normalizer at every scale, with every seed."""
    steps.plan(len(CELLS) * len(NORMS))
    figures: dict[str, dict[str, dict]] = {cell: {} for cell in CELLS}
    same: dict[str, bool] = {}
    for cell in CELLS:
        for norm in NORMS:
            found = [
                [look(cell, norm, scale, seed, options) for scale in SCALES]
                for seed in range(options.seeds)
            ]
            figures[cell][norm] = {
                "norm": [[run[0] for run in row] for row in found],
                "gradient": [[run[1] for run in row] for row in found],
            }
            if norm == "layer":
                same[cell] = all(np.array_equal(run[2], row[0][2]) for row in found for run in row)
            steps.step(f"{cell} {norm}")

    def range_of(cell: str, norm: str, what: str) -> list[float]:
        return [max(row) - min(row) for row in figures[cell][norm][what]]

    def worst(cell: str, norm: str) -> list[float]:
        return [max(map(abs, row)) for row in figures[cell][norm]["gradient"]]

    claims = []
    for cell, title in CELLS.items():
        claims += [
            Claim(
                f"{title}: with layer norm the hidden state does not depend on the scale",
                "invariant (table 1, §3.1)",
                f"{'the same bits' if same[cell] else 'differs'} at all {len(SCALES)} scales, "
                f"eps = 0",
                "holds" if same[cell] else "does not hold",
            ),
            Claim(
                f"{title}: without, gradients do (range over scales, in powers of ten through "
                f"{options.steps} steps)",
                "exploding or vanishing gradients (§3.1)",
                "; ".join(
                    f"{NAMES[norm]} {mean_and_spread(range_of(cell, norm, 'gradient'))}"
                    for norm in NORMS
                ),
                compare(range_of(cell, "layer", "gradient"), range_of(cell, "noop", "gradient")),
            ),
            Claim(
                f"{title}: at its worst scale, a gradient changes less with layer norm (powers of "
                "ten)",
                "much more stable (§3.1)",
                "; ".join(f"{NAMES[norm]} {mean_and_spread(worst(cell, norm))}" for norm in NORMS),
                compare(worst(cell, "layer"), worst(cell, "noop")),
            ),
        ]
    return Outcome({"scales": SCALES, **figures}, claims, draw(figures, options.steps))


def draw(figures: dict[str, dict[str, dict]], n_steps: int) -> Figure:
    """Draw the state's norm and the change of a gradient by scale."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(figures), sharex=True, sharey="row")
    for column, (cell, by_norm) in zip(grid.T, figures.items(), strict=True):
        for place, (norm, found) in enumerate(by_norm.items()):
            band(column[0], SCALES, found["norm"], NAMES[norm], place, marker=".")
            band(column[1], SCALES, found["gradient"], NAMES[norm], place, marker=".")
        column[0].set_title(CELLS[cell])
        column[1].set_xscale("log", base=2)
        column[1].set_xticks(SCALES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        column[1].set_xlabel("scale of the recurrent weights")
        for axes in column:
            bare(axes)
    grid[0, 0].set_ylabel("norm of the last hidden state")
    grid[0, 0].legend(frameon=False)
    grid[1, 0].set_ylabel(f"gradient, {n_steps} steps back")
    grid[1, 0].yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    return figure


OPTIONS = {"hidden": (64, "units of the hidden state"), "steps": (100, "time steps")}

# sphinx_gallery_thumbnail_path = "gallery/results/dynamics.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="dynamics", doc=__doc__, options=OPTIONS))
