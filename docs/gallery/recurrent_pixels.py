"""
Recurrent networks that read pixels
===================================

An LSTM and a GRU read digits pixel by pixel, 64 steps of one value, and name the digit at the end:
without normalization, with batch norm that has statistics for each time step, and with layer norm.
The task is small, and hard for a plain network: what decides about the digit may be 60 steps back.

The paper says that layer norm stabilizes the hidden state's dynamics (§3.1) and shortens training
(§6); recurrent batch norm is that of Cooijmans et al. Starting weights and batches are the same for
all three.

.. image:: /gallery/results/recurrent_pixels.png
   :alt: Learning curves, gradients by step, and hidden state of an LSTM and a GRU

The first row has the training loss by updates and by time, and the norm of the gradient by the
hidden state, back from the last step. The other rows show the hidden state at each step.

.. include:: /gallery/results/recurrent_pixels.rst

Most of it does not hold here, for a reason. A step shows one value x, so that :math:`W_{ih} x` is
one fixed vector times x, and layer norm, which divides by the spread over units, leaves of x
nothing but whether it is zero: grey and black are the same. Batch norm divides by the spread over
cases, and has no such trouble. So the same was tried with two values a step, x and 1 - x
(``--inputs 2 --name recurrent_pixels_pair``), which layer norm can tell apart:

.. image:: /gallery/results/recurrent_pixels_pair.png
   :alt: The same with two values a step

.. include:: /gallery/results/recurrent_pixels_pair.rst

Now layer norm needs the fewest updates, or as few as batch norm, and has the lowest test error. A
plain GRU still reaches the loss in less time: what a normalizer costs at every one of 64 steps, for
64 units, is more than it saves.

Batch norm's test error is far above what its training loss suggests: its running statistics fail.
Some pixels are empty in nearly every image, so that in most batches the variance at that step is
near zero, and an image with ink there is amplified by very different factors in training and in
inference. In an earlier run, an LSTM read 70 % of the test images wrong by running statistics, 19 %
by those of the test images themselves; with eps = 1e-3 instead of 1e-5 it was 38 % and 14 %.

The pictures show something else: before training, with one value a step, the gradient at the very
first steps explodes with layer norm: images begin with empty pixels, so input, state and biases are
all zero, the variance is zero, and layer norm divides by the square root of eps, at each such step
again. After some updates biases are no longer zero, and it is gone. With batch norm the same comes
in the course of training, where the first pixels of all images are empty. Clip gradients.
(Comparisons of gradients leave the first quarter of the steps out.)

Run it with ``python docs/gallery/recurrent_pixels.py``; it takes two minutes. With ``--data`` it
reads other images in the IDX format, MNIST's in 784 steps.
"""

# %%
# The measurement
# ---------------
import argparse
import copy
import sys

import numpy as np
from experiments.data import IMAGES, batches, images
from experiments.experiment import Outcome, Steps, main
from experiments.recurrent import CELLS, NORMS, Inside, claims, draw, learn, look_inside

from normlib.demo.data import Digits, Images, read_digits
from normlib.demo.train import Classifier

BATCH = 64


def as_sequences(part: Images, inputs: int) -> Digits:
    """Return images as sequences of a pixel, or of a pixel and what it lacks to 1."""
    x = read_digits(part.pixels, "pixel")
    return Digits(x if inputs == 1 else np.concatenate([x, 1 - x], axis=2), part.labels)


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train every cell with every normalizer and seed; look inside before and after."""
    steps.plan(len(CELLS) * len(NORMS) * options.seeds)
    runs = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    insides = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    tests = {cell: {norm: [] for norm in NORMS} for cell in CELLS}
    for seed in range(options.seeds):
        train, test = (as_sequences(part, options.inputs) for part in images(options.data, seed))
        seen = test.x[:, :128]
        for cell in CELLS:
            for norm in NORMS:
                model = Classifier(
                    options.inputs, options.hidden, len(train.x), cell=cell, norm=norm, seed=seed
                )
                inside = Inside()
                inside.before, inside.gradients_before = look_inside(
                    copy.deepcopy(model.rnn), seen, seed
                )
                places = batches(len(train.labels), BATCH, np.random.default_rng(seed))
                drawn = (Digits(train.x[:, batch], train.labels[batch]) for batch in places)
                curve = learn(model, drawn, updates=options.updates, learning_rate=options.rate)
                tests[cell][norm].append(100 * (1 - model.accuracy(test)))
                inside.after, inside.gradients_after = look_inside(
                    copy.deepcopy(model.rnn), seen, seed
                )
                runs[cell][norm].append(curve)
                insides[cell][norm].append(inside)
                steps.step(
                    f"{cell} {norm} seed {seed}: loss {curve.smooth()[-1]:.3g}, test error "
                    f"{tests[cell][norm][-1]:.1f} %, {sum(curve.seconds):.0f} s"
                )
    figures = {
        cell: {
            norm: {
                "runs": [curve.as_dict() for curve in runs[cell][norm]],
                "test_error": tests[cell][norm],
                "inside": [inside.as_dict() for inside in insides[cell][norm]],
            }
            for norm in NORMS
        }
        for cell in CELLS
    }
    target = options.target
    return Outcome(
        figures, claims(runs, insides, tests, target, "test error (%)"), draw(runs, insides, target)
    )


OPTIONS = {
    "updates": (240, "updates of each run"),
    "hidden": (64, "units of the hidden state"),
    "rate": (0.01, "learning rate of Adam"),
    "inputs": (1, "values of a time step: 1, the pixel; 2, also what it lacks to 1"),
    "target": (1.0, "the training loss by which speed is measured"),
}

# sphinx_gallery_thumbnail_path = "gallery/results/recurrent_pixels.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="recurrent_pixels", doc=__doc__, options=OPTIONS, data=IMAGES))
