"""
Recurrent networks that read text
=================================

An LSTM and a GRU predict the next character of a text, 50 characters at a time, without
normalization, with batch norm that has statistics for each time step, and with layer norm. The text
is the source code of Python's standard library, or a file given by ``--data``.

.. image:: /gallery/results/recurrent_text.png
   :alt: Learning curves, gradients by step, and hidden state of an LSTM and a GRU

.. include:: /gallery/results/recurrent_text.rst

Layer norm needs the fewest updates and the least time, and ends lowest. The plain networks pass a
gradient back over some ten steps before training; with layer norm most of it arrives at the first
one. After training, what is passed back is what helps to predict: the LSTMs then differ little. The
hidden state's norm is steady in all three; batch norm's LSTM, with gains that start at 0.1, keeps
it as steady as layer norm's.

Run it with ``python docs/gallery/recurrent_text.py``; it takes two minutes.
"""

# %%
# The measurement
# ---------------
# Losses are in nats a character; sequences start from a zero state, at random places of the text.
import argparse
import copy
import sys

import numpy as np
from experiments.data import TEXT, text
from experiments.experiment import Outcome, Steps, main
from experiments.recurrent import (
    CELLS,
    NORMS,
    Inside,
    LanguageModel,
    claims,
    draw,
    learn,
    look_inside,
    shuffled,
)


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train every cell with every normalizer and seed; look inside before and after."""
    steps.plan(len(CELLS) * len(NORMS) * options.seeds)
    corpus = text(options.data)
    length = options.steps
    runs = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    insides = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    tests = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    for seed in range(options.seeds):
        seen = corpus.sample(corpus.test, length, 128, np.random.default_rng(seed))
        for cell in CELLS:
            for norm in NORMS:
                model = LanguageModel(
                    corpus.vocabulary, options.hidden, length, cell=cell, norm=norm, seed=seed
                )
                inside = Inside()
                inside.before, inside.gradients_before = look_inside(
                    copy.deepcopy(model.rnn), seen.x, seed
                )
                rng = np.random.default_rng(seed)
                drawn = shuffled(
                    lambda rng=rng: corpus.sample(corpus.train, length, options.batch, rng)
                )
                curve = learn(model, drawn, updates=options.updates, learning_rate=options.rate)
                tests[cell][norm].append(float(model.losses_by_step(seen).mean()))
                inside.after, inside.gradients_after = look_inside(
                    copy.deepcopy(model.rnn), seen.x, seed
                )
                runs[cell][norm].append(curve)
                insides[cell][norm].append(inside)
                steps.step(
                    f"{cell} {norm} seed {seed}: loss {curve.smooth()[-1]:.3g}, on other text "
                    f"{tests[cell][norm][-1]:.3g}, {sum(curve.seconds):.0f} s"
                )
    figures = {
        cell: {
            norm: {
                "runs": [curve.as_dict() for curve in runs[cell][norm]],
                "test_loss": tests[cell][norm],
                "inside": [inside.as_dict() for inside in insides[cell][norm]],
            }
            for norm in NORMS
        }
        for cell in CELLS
    }
    target = options.target
    return Outcome(
        figures,
        claims(runs, insides, tests, target, "loss on other text"),
        draw(runs, insides, target),
    )


OPTIONS = {
    "updates": (240, "updates of each run"),
    "hidden": (64, "units of the hidden state"),
    "steps": (50, "characters of a sequence"),
    "batch": (32, "sequences of a batch"),
    "rate": (0.005, "learning rate of Adam"),
    "target": (2.2, "the training loss by which speed is measured"),
}

# sphinx_gallery_thumbnail_path = "gallery/results/recurrent_text.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="recurrent_text", doc=__doc__, options=OPTIONS, data=TEXT))
