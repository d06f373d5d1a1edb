"""
The size of the batch
=====================

In batches of 128, layer norm and batch norm learn about equally fast, and both faster than a
network without; in batches of 4, batch norm falls behind, and layer norm does not. The network is
one of dense layers that reads digits whose pixels it sees in no order.

The paper (§6.6, figure 6) trains a 784-1000-1000-10 network on MNIST and shows negative log
likelihood and test error over epochs, for batches of 128 and of 4. Both hidden layers are
normalized, the last layer is not: softmax should see the scale of its scores. By default, the
network here is 64-128-128-10 and the digits are scikit-learn's, so that it takes a minute. With
``--data train-images-idx3-ubyte.gz --hidden 1000`` it is the paper's, which takes a quarter of an
hour.

The loss shown is that of training, with the statistics of the batch: batch norm's loss in batches
of 4 is high because of these. Its test error, with running statistics, shows less of it.

.. image:: /gallery/results/batch_size.png
   :alt: Training loss and test error over updates, in batches of 128 and of 4

.. include:: /gallery/results/batch_size.rst

What does not hold: in batches of 128, layer norm is not ahead of batch norm from the start (to a
loss of 0.1), but later (to 0.01); and batch norm's test error is lower, as its noise regularizes.

With 300 hidden units on MNIST, 8,000 images to train on and 2,000 to test with (``--data
t10k-images-idx3-ubyte.gz --hidden 300 --updates 1000 --name batch_size_mnist``), the same holds of
layer norm and batch norm, while in batches of 4 layer norm is no better than no normalization:

.. image:: /gallery/results/batch_size_mnist.png
   :alt: The same on MNIST

.. include:: /gallery/results/batch_size_mnist.rst

Run it with ``python docs/gallery/batch_size.py``.
"""

# %%
# The measurement
# ---------------
import argparse
import sys
from functools import partial

import numpy as np
from experiments.curves import Runs, curves, less
from experiments.data import IMAGES, Part, batches, parts
from experiments.experiment import Claim, Outcome, Steps, main
from experiments.network import perceptron
from experiments.training import Curve, train

import normlib

NORMS = ("noop", "batch", "layer")
BATCHES = (128, 4)


def run(
    norm: str, size: int, train_part: Part, test: Part, seed: int, options: argparse.Namespace
) -> Curve:
    """Train one network."""
    sizes = (train_part.x.shape[1], options.hidden, options.hidden, 10)
    make = None if norm == "noop" else partial(normlib.create, norm)
    network = perceptron(sizes, make, seed)
    every = max(1, options.updates // 20)
    places = batches(len(train_part.labels), size, np.random.default_rng(seed))
    drawn = (Part(train_part.x[batch], train_part.labels[batch]) for batch in places)
    for number, curve in train(network, drawn, updates=options.updates, learning_rate=options.rate):
        if number % every == 0:
            curve.tests[number] = network.error(test)
    return curve


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train with every normalizer, batch size and seed."""
    steps.plan(options.seeds * len(NORMS) * len(BATCHES))
    runs: dict[int, Runs] = {size: {norm: [] for norm in NORMS} for size in BATCHES}
    for seed in range(options.seeds):
        train_part, test = parts(options.data, seed)
        for size in BATCHES:
            for norm in NORMS:
                curve = run(norm, size, train_part, test, seed, options)
                runs[size][norm].append(curve)
                steps.step(
                    f"{norm} in batches of {size}, seed {seed}: loss {curve.smooth()[-1]:.3g}, "
                    f"test error {last(curve):.1f} %"
                )
    claims = []
    for size, targets in zip(
        BATCHES, ((options.target, options.target / 10), (options.small,)), strict=True
    ):
        for other in ("noop", "batch"):
            claims += [
                Claim(
                    f"batches of {size}: layer norm needs fewer updates than {name(other)} to a "
                    f"loss of {target:g}",
                    f"faster than {name(other)} (figure 6)",
                    *less(runs[size], "layer", other, lambda c, to=target: c.updates_to(to)),
                )
                for target in targets
            ]
            claims.append(
                Claim(
                    f"batches of {size}: layer norm ends with a lower test error than "
                    f"{name(other)}",
                    "lower (figure 6)",
                    *less(runs[size], "layer", other, last, " %"),
                )
            )
    figures = {
        size: {norm: [curve.as_dict() for curve in own] for norm, own in group.items()}
        for size, group in runs.items()
    }
    titles = {f"batches of {size}": group for size, group in runs.items()}
    return Outcome(figures, claims, curves(titles, "test error"))


def name(norm: str) -> str:
    """Return a normalizer's name in a sentence."""
    return {"noop": "no normalization", "batch": "batch norm", "layer": "layer norm"}[norm]


def last(curve: Curve) -> float:
    """Return the mean of the last five test errors, in per cent."""
    return 100 * float(np.mean(list(curve.tests.values())[-5:]))


OPTIONS = {
    "updates": (1000, "updates of each run"),
    "hidden": (128, "units of each hidden layer"),
    "rate": (0.001, "learning rate of Adam"),
    "target": (
        0.1,
        "the training loss by which speed is measured in batches of 128, with a tenth of it",
    ),
    "small": (0.3, "the same, in batches of 4"),
}

# sphinx_gallery_thumbnail_path = "gallery/results/batch_size.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="batch_size", doc=__doc__, options=OPTIONS, data=IMAGES))
