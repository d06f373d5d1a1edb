"""
Longer than trained
===================

Layer norm knows nothing of the number of the time step, so that a network may run longer than any
sequence it was trained on. Batch norm in a recurrent network has statistics for each step, and none
for steps that training never reached (the paper's §3; Cooijmans et al. use the last one for them,
as ``normlib.BatchNorm`` does with ``steps=T``).

An LSTM learns to predict the next character on sequences of T = 50 steps and runs on other text for
2T and 4T steps. Batch norm is tried with statistics for each of the T steps, the last ones reused;
with statistics for each of 4T steps, of which training fills the first T; and with one set for all
steps.

.. image:: /gallery/results/longer.png
   :alt: Loss by time step, up to four times the length of training, for each normalization

.. include:: /gallery/results/longer.rst

What does not hold: reusing the last statistics costs nothing here, nor does one set for all steps.
The state of these networks has settled after some ten characters, and its statistics with it.
Statistics that training never filled are the trap: mean 0 and variance 1 are wrong by far.

Run it with ``python docs/gallery/longer.py``; it takes a minute. ``--data`` takes a text file.
"""

# %%
# The measurement
# ---------------
import argparse
import sys

import numpy as np
from experiments.data import TEXT, text
from experiments.experiment import Claim, Outcome, Steps, compare, main, mean_and_spread
from experiments.recurrent import LanguageModel, learn, shuffled
from matplotlib.figure import Figure

from normlib.diagnostics.plots import GREY, band, bare

# By label: the normalizer, and the steps with statistics of their own, in multiples of T; 0: one.
VARIANTS = {
    "none": ("noop", 0),
    "batch norm by step, the last reused": ("batch", 1),
    "layer norm": ("layer", 0),
    "batch norm by step, none beyond T": ("batch", 4),
    "batch norm, one set": ("batch", 0),
}
REUSED, UNKNOWN = "batch norm by step, the last reused", "batch norm by step, none beyond T"
TOLERANCE = 0.02  # nats a character


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train every variant with every seed; run it four times as long."""
    steps.plan(options.seeds * len(VARIANTS))
    corpus = text(options.data)
    length = options.steps
    losses: dict[str, list[np.ndarray]] = {label: [] for label in VARIANTS}
    for seed in range(options.seeds):
        long = corpus.sample(corpus.test, 4 * length, options.cases, np.random.default_rng(seed))
        for label, (norm, times) in VARIANTS.items():
            model = LanguageModel(
                corpus.vocabulary,
                options.hidden,
                max(1, times * length),
                cell="lstm",
                norm=norm,
                seed=seed,
            )
            rng = np.random.default_rng(seed)
            drawn = shuffled(lambda rng=rng: corpus.sample(corpus.train, length, 32, rng))
            learn(model, drawn, updates=options.updates, learning_rate=options.rate)
            losses[label].append(model.losses_by_step(long))
            steps.step(f"{label}, seed {seed}: loss {losses[label][-1][:length].mean():.3g}")

    within, twice, four = (
        slice(length // 2, length),
        slice(length, 2 * length),
        slice(2 * length, 4 * length),
    )

    def change(label: str, part: slice) -> list[float]:
        return [float(run[part].mean() - run[within].mean()) for run in losses[label]]

    def measured(label: str) -> str:
        return (
            f"loss beyond T less that in T's second half: "
            f"{mean_and_spread(change(label, twice), '.3f')} up to 2T, "
            f"{mean_and_spread(change(label, four), '.3f')} from there to 4T"
        )

    tolerance = options.seeds * [TOLERANCE]
    claims = [
        Claim(
            f"layer norm runs on beyond T without loss (within {TOLERANCE} nats a character)",
            "no statistics by step, no problem (§3)",
            measured("layer norm"),
            compare(change("layer norm", four), tolerance),
        ),
        Claim(
            "batch norm without statistics beyond T loses there",
            "a problem for sequences longer than those of training (§3)",
            measured(UNKNOWN),
            compare(tolerance, change(UNKNOWN, four)),
        ),
        Claim(
            "batch norm that reuses its last statistics beyond T loses there",
            "a problem for sequences longer than those of training (§3)",
            measured(REUSED),
            compare(tolerance, change(REUSED, four)),
        ),
        Claim(
            "batch norm with one set of statistics for all steps loses beyond T",
            "not measured",
            measured("batch norm, one set"),
            compare(tolerance, change("batch norm, one set", four)),
        ),
        Claim(
            "from 2T to 4T layer norm has the lowest loss",
            "not measured",
            "; ".join(
                f"{label} {mean_and_spread([float(run[four].mean()) for run in losses[label]])}"
                for label in VARIANTS
            ),
            compare(
                [float(run[four].mean()) for run in losses["layer norm"]],
                np.min(
                    [
                        [run[four].mean() for run in own]
                        for label, own in losses.items()
                        if label != "layer norm"
                    ],
                    axis=0,
                ),
            ),
        ),
    ]
    return Outcome({"loss_by_step": losses}, claims, draw(losses, length))


def draw(losses: dict[str, list[np.ndarray]], length: int) -> Figure:
    """Draw the loss by step, smoothed a little."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    window = max(1, length // 10)
    kernel = np.ones(window) / window
    for place, (label, runs) in enumerate(losses.items()):
        smooth = np.array([np.convolve(run, kernel, "valid") for run in runs])
        band(axes, np.arange(window, 4 * length + 1), smooth, label, place)
    for factor, text_of_line in ((1, "T, as trained"), (2, "2T")):
        axes.axvline(factor * length, color=GREY, linestyle=":", linewidth=1)
        axes.text(
            factor * length,
            0.98,
            f" {text_of_line}",
            color=GREY,
            va="top",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_xlabel("time step")
    axes.set_ylabel("loss, nats a character")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    axes.set_title("An LSTM runs longer than it was trained", loc="left")
    bare(axes)
    return figure


OPTIONS = {
    "updates": (300, "updates of each run"),
    "hidden": (96, "units of the hidden state"),
    "steps": (50, "T, characters of a sequence in training"),
    "cases": (256, "sequences to test with"),
    "rate": (0.005, "learning rate of Adam"),
}

# sphinx_gallery_thumbnail_path = "gallery/results/longer.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="longer", doc=__doc__, options=OPTIONS, data=TEXT))
