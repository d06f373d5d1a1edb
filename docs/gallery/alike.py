"""
One case, alone and in company
==============================

Layer norm computes the same in training and test, and for a case whatever the others of its batch
are. Batch norm does neither. How much that is, is measured here on a trained network that reads
digits.

The same test images are read in four ways: in inference; alone; in small batches; and in other
company. The paper's abstract says of layer norm that training and test compute the same, and §3
that it puts no constraint on the size of the batch.

.. image:: /gallery/results/alike.png
   :alt: Difference of the scores by batch size, for layer norm and batch norm

.. include:: /gallery/results/alike.rst

Run it with ``python docs/gallery/alike.py``; it takes some seconds.
"""

# %%
# The network
# -----------
# One hidden layer, trained in batches of 32; batch norm keeps running statistics for inference.
import argparse
import sys
from functools import partial
from typing import Any

import numpy as np
from experiments.data import IMAGES, Part, batches, parts
from experiments.experiment import Claim, Outcome, Steps, main, mean_and_spread
from experiments.network import Network, perceptron
from experiments.training import train
from matplotlib.figure import Figure

import normlib
from normlib.diagnostics.plots import band, bare

NORMS = ("batch", "layer")
SIZES = (2, 4, 8, 16, 32, 64, 128)
CASES = 128


def trained(norm: str, train_part: Part, seed: int, options: argparse.Namespace) -> Network:
    """Return a network after training."""
    sizes = (train_part.x.shape[1], options.hidden, 10)
    network = perceptron(sizes, partial(normlib.create, norm), seed)
    rng = np.random.default_rng(seed)
    places = batches(len(train_part.labels), 32, rng)
    drawn = (Part(train_part.x[batch], train_part.labels[batch]) for batch in places)
    for _ in train(network, drawn, updates=options.updates, learning_rate=0.01):
        pass
    return network


# %%
# The comparison
# --------------
# Scores of ``forward``, which training uses, in batches of one size, beside those of inference.


def in_batches(network: Network, x: np.ndarray, size: int) -> np.ndarray:
    """Return scores as training computes them, in batches of a size."""
    return np.concatenate([network.forward(x[i : i + size])[0] for i in range(0, len(x), size)])


def compare_scores(network: Network, x: np.ndarray) -> dict[str, Any]:
    """Compare scores of the same cases; infinite where they cannot be computed."""
    inference = network(x)
    alone = np.concatenate([network(x[i : i + 1]) for i in range(len(x))])
    scale = inference.std()
    found: dict[str, Any] = {
        "inference_alone_same_bits": bool(np.array_equal(alone, inference)),
        "difference": [],
        "changed_decisions": [],
    }
    for size in SIZES:
        scores = in_batches(network, x, size)
        difference = np.abs(scores - inference).max(axis=1)
        found["difference"].append(float(np.mean(difference) / scale))
        changed = scores.argmax(axis=1) != inference.argmax(axis=1)
        found["changed_decisions"].append(float(np.mean(changed)))
    try:
        scores = in_batches(network, x, 1)
        found["training_alone"] = float(np.abs(scores - inference).max() / scale)
    except ValueError as error:
        found["training_alone"] = f"refused: {error}"
    return found


def hidden_same_bits(network: Network, x: np.ndarray) -> bool:
    """Tell whether a case's normalized hidden layer has the same bits in any company."""
    dense, norm = network.layers[:2]
    summed = dense(x)
    whole = norm.forward(summed)[0]
    return all(
        np.array_equal(norm.forward(np.ascontiguousarray(summed[:size]))[0], whole[:size])
        and np.array_equal(norm(summed[:size]), whole[:size])
        for size in SIZES
    )


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Train with every normalizer and seed; compare."""
    steps.plan(options.seeds * len(NORMS))
    runs: dict[str, list[dict[str, Any]]] = {norm: [] for norm in NORMS}
    for seed in range(options.seeds):
        train_part, test = parts(options.data, seed)
        for norm in NORMS:
            network = trained(norm, train_part, seed, options)
            x = test.x[:CASES]
            found = {"test_error": network.error(test), **compare_scores(network, x)}
            found["hidden_same_bits"] = hidden_same_bits(network, x)
            runs[norm].append(found)
            steps.step(f"{norm} seed {seed}: test error {found['test_error']:.1%}")

    def figure(norm: str, key: str, size: int) -> list[float]:
        return [run[key][SIZES.index(size)] for run in runs[norm]]

    layer_alike = all(run["hidden_same_bits"] for run in runs["layer"])
    batch_alike = any(run["hidden_same_bits"] for run in runs["batch"])
    refused = all(isinstance(run["training_alone"], str) for run in runs["batch"])
    largest = max(max(run["difference"]) for run in runs["layer"])
    decisions = max(max(run["changed_decisions"]) for run in runs["layer"])
    claims = [
        Claim(
            "layer norm: the same in training and test, alone and in any batch",
            "the same computation (abstract; §3)",
            f"normalized layer: {'the same bits' if layer_alike else 'other bits'}. Scores after "
            f"NumPy's product: {f'differ by {largest:.0e} of their spread' if largest else 'too'}; "
            f"decisions changed: {decisions:.0%}",
            "holds" if layer_alike and decisions == 0 else "does not hold",
        ),
        Claim(
            "batch norm: training and test differ, the more so the smaller the batch",
            "different computations at training and test (§1)",
            "mean difference of scores, by their spread: "
            f"{mean_and_spread(figure('batch', 'difference', 2), '.2f')} in batches of 2, "
            f"{mean_and_spread(figure('batch', 'difference', 128), '.2f')} in 128",
            "does not hold" if batch_alike else "holds",
        ),
        Claim(
            "batch norm: whether a digit is read right depends on its company",
            "not measured",
            "decisions that differ from inference: "
            f"{mean_and_spread([100 * v for v in figure('batch', 'changed_decisions', 2)])} % in "
            f"batches of 2, "
            f"{mean_and_spread([100 * v for v in figure('batch', 'changed_decisions', 32)])} % "
            "in 32, the size of training",
            "holds" if min(figure("batch", "changed_decisions", 2)) > 0 else "does not hold",
        ),
        Claim(
            "batch norm cannot train on one case at a time, layer norm can",
            "impossible with small mini-batches (§1)",
            f"batch norm: {'refused with an error' if refused else 'computed'}; layer norm: "
            "computed",
            "holds" if refused else "does not hold",
        ),
    ]
    return Outcome({"sizes": SIZES, "runs": runs}, claims, draw(runs))


def draw(runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw differences of scores and of decisions by batch size."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    scores, decisions = figure.subplots(1, 2)
    for place, norm in enumerate(NORMS, 1):
        band(
            scores,
            SIZES,
            [run["difference"] for run in runs[norm]],
            f"{norm} norm",
            place,
            marker=".",
        )
        changed = [run["changed_decisions"] for run in runs[norm]]
        band(decisions, SIZES, 100 * np.array(changed), f"{norm} norm", place, marker=".")
    scores.set_title("difference of scores, relative to their spread")
    decisions.set_title("decisions that change, %")
    scores.legend(frameon=False)
    for axes in (scores, decisions):
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.set_xlabel("cases a batch")
        bare(axes)
    figure.suptitle("Training's computation beside inference, on the same test images")
    return figure


OPTIONS = {"updates": (300, "updates of training"), "hidden": (128, "hidden units")}

# sphinx_gallery_thumbnail_path = "gallery/results/alike.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="alike", doc=__doc__, options=OPTIONS, data=IMAGES))
