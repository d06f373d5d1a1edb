"""
Convolutions
============

In convolutional networks layer norm beats no normalization, and batch norm beats layer norm: so
says the paper. A small network of two convolutions reads digits with each.

Layer norm takes its statistics over all channels and pixels of a case; batch norm over the batch's
pixels of a channel; group norm, which came after the paper, over a case's pixels of a group of
channels. The paper's explanation (§6.7): units that look at the border of an image are seldom
active, so that the units of a layer do not have similar statistics.

.. image:: /gallery/results/convolutions.png
   :alt: Training loss and test error over updates for each normalization

.. include:: /gallery/results/convolutions.rst

Batch norm does not beat layer norm here. In another network, where the pixels are not averaged
(``--pool 1 --name convolutions_unpooled``), it does:

.. image:: /gallery/results/convolutions_unpooled.png
   :alt: The same without averages

.. include:: /gallery/results/convolutions_unpooled.rst

It is ahead on MNIST, too, with averages; 8,000 images to train on and 2,000 to test with (``--data
t10k-images-idx3-ubyte.gz --channels 8 --name convolutions_mnist``):

.. image:: /gallery/results/convolutions_mnist.png
   :alt: The same on MNIST

.. include:: /gallery/results/convolutions_mnist.rst

Run it with ``python docs/gallery/convolutions.py``; it takes a minute. With ``--data`` it reads
MNIST or what else is in the IDX format.
"""

# %%
# The network
# -----------
# 3 × 3 convolution, normalization, ReLU, the mean of each 2 × 2 pixels, all that twice; then a
# dense layer, without normalization.
# The convolution is NumPy's ``sliding_window_view`` and ``tensordot``.
import argparse
import sys

import numpy as np
from experiments.curves import Runs, curves, less
from experiments.data import IMAGES, Part, batches, images
from experiments.experiment import Claim, Outcome, Steps, main
from experiments.network import (
    ChannelNorm,
    Convolution,
    Dense,
    Flatten,
    LayerLike,
    Network,
    Pool,
    Relu,
)
from experiments.training import train

from normlib.demo.data import Images

NORMS = ["noop", "batch", "layer", "group"]
BATCH = 64


def network(norm: str, shape: tuple[int, int], channels: int, side: int, seed: int) -> Network:
    """Make the network; weights are the same for every normalization."""
    rng = np.random.default_rng(seed)
    height, width = shape
    layers: list[LayerLike] = []
    for c_in, c_out in ((1, channels), (channels, channels)):
        layers.append(Convolution(c_in, c_out, rng))
        if norm != "noop":
            layers.append(ChannelNorm(norm, (c_out, height, width)))
        layers += [Relu(), Pool(side)]
        height, width = height // side, width // side
    return Network([*layers, Flatten(), Dense(channels * height * width, 10, rng)])


# %%
# The measurement
# ---------------


def as_part(part: Images) -> Part:
    """Return images with an axis of channels."""
    return Part(part.pixels[:, np.newaxis], part.labels)


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train with every normalization and seed."""
    steps.plan(options.seeds * len(NORMS))
    runs: Runs = {norm: [] for norm in NORMS}
    every = max(1, options.updates // 20)
    for seed in range(options.seeds):
        train_part, test = (as_part(part) for part in images(options.data, seed))
        for norm in NORMS:
            net = network(norm, train_part.x.shape[2:], options.channels, options.pool, seed)
            places = batches(len(train_part.labels), BATCH, np.random.default_rng(seed))
            drawn = (Part(train_part.x[batch], train_part.labels[batch]) for batch in places)
            for number, curve in train(
                net, drawn, updates=options.updates, learning_rate=options.rate
            ):
                if number % every == 0:
                    curve.tests[number] = net.error(test)
            runs[norm].append(curve)
            steps.step(
                f"{norm} seed {seed}: loss {curve.smooth()[-1]:.3g}, "
                f"test error {curve.tests[number]:.1%}"
            )
    target = options.target
    claims = [
        Claim(
            f"layer norm is faster than no normalization (updates to a loss of {target:g})",
            "a speedup over the baseline (§6.7)",
            *less(runs, "layer", "noop", lambda curve: curve.updates_to(target)),
        ),
        Claim(
            "layer norm ends with a lower test error than no normalization",
            "not given",
            *less(runs, "layer", "noop", lambda curve: 100 * min_last(curve.tests), " %"),
        ),
        Claim(
            f"batch norm is faster than layer norm (updates to a loss of {target:g})",
            "batch normalization outperforms the others (§6.7)",
            *less(runs, "batch", "layer", lambda curve: curve.updates_to(target)),
        ),
        Claim(
            "batch norm ends with a lower test error than layer norm",
            "batch normalization outperforms the others (§6.7)",
            *less(runs, "batch", "layer", lambda curve: 100 * min_last(curve.tests), " %"),
        ),
    ]
    if "group" in runs:
        claims.append(
            Claim(
                f"group norm is faster than layer norm (updates to a loss of {target:g})",
                "not in the paper",
                *less(runs, "group", "layer", lambda curve: curve.updates_to(target)),
            )
        )
    title = f"A convolutional network of {options.channels} channels reads digits"
    figures = {norm: [curve.as_dict() for curve in own] for norm, own in runs.items()}
    return Outcome(figures, claims, curves({title: runs}, "test error", target=target))


def min_last(tests: dict[int, float]) -> float:
    """Return the mean of the last five test errors, which is less noisy than the last one."""
    return float(np.mean(list(tests.values())[-5:]))


OPTIONS = {
    "updates": (300, "updates of each run"),
    "channels": (16, "channels of both convolutions"),
    "pool": (2, "side of the squares of pixels whose mean is taken; 1: as they are"),
    "rate": (0.003, "learning rate of Adam"),
    "target": (0.1, "the training loss by which speed is measured"),
}

# sphinx_gallery_thumbnail_path = "gallery/results/convolutions.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="convolutions", doc=__doc__, options=OPTIONS, data=IMAGES))
