"""
Invariance: the paper's table 1
===============================

Which changes of weights or data leave the output of a normalized layer as it was? Each of the six
changes is made to a linear layer of random weights, and the outputs before and after are compared.

Layer norm and batch norm are normlib's; weight norm, which divides each unit's weights by their
norm, is written out here. In float64 with eps = 0, "as it was" means to rounding, and to the last
bit where the change is by a power of two. A positive factor is meant throughout: a negative one
flips signs.

.. image:: /gallery/results/invariance.png
   :alt: For each normalization and change, the relative difference of the outputs

.. include:: /gallery/results/invariance.rst

Run it with ``python docs/gallery/invariance.py``; it takes a second.
"""

# %%
# What is compared
# ----------------
import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from experiments.experiment import Claim, Outcome, Steps, main
from matplotlib.figure import Figure
from numpy.typing import NDArray

import normlib

Array = NDArray[np.float64]
CASES, INPUTS, UNITS = 32, 20, 24


def batch_norm(x: Array, weight: Array, eps: float) -> Array:
    """Normalize each unit over the cases."""
    return normlib.batch_norm_forward(x @ weight.T, eps=eps)[0]


def weight_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide the weights of each unit by their norm."""
    return x @ (weight / np.sqrt(np.sum(weight**2, axis=1, keepdims=True) + eps)).T


def layer_norm(x: Array, weight: Array, eps: float) -> Array:
    """Normalize each case over the units."""
    return normlib.layer_norm(x @ weight.T, eps=eps)


NORMS = {"batch norm": batch_norm, "weight norm": weight_norm, "layer norm": layer_norm}

# %%
# The six changes
# ---------------
# Each makes new data and weights. Re-centering adds one constant vector: to the incoming weights of
# all units, or to all cases. The last two columns of a row say what the paper's table has.


def scale_one(array: Array, factor: float) -> Array:
    """Return the array with its first row scaled."""
    changed = array.copy()
    changed[0] *= factor
    return changed


Change = Callable[[Array, Array, float, Array], tuple[Array, Array]]
CHANGES: dict[str, Change] = {
    "weight matrix re-scaled": lambda x, w, factor, shift: (x, factor * w),
    "weight matrix re-centered": lambda x, w, factor, shift: (x, w + shift),
    "weight vector re-scaled": lambda x, w, factor, shift: (x, scale_one(w, factor)),
    "dataset re-scaled": lambda x, w, factor, shift: (factor * x, w),
    "dataset re-centered": lambda x, w, factor, shift: (x + shift, w),
    "single case re-scaled": lambda x, w, factor, shift: (scale_one(x, factor), w),
}
PAPER = {
    "batch norm": (True, False, True, True, True, False),
    "weight norm": (True, False, True, False, False, False),
    "layer norm": (True, True, False, True, False, True),
}
ROUNDING = 1e-12

# %%
# The measurement
# ---------------


def difference(norm: str, change: str, factor: float, seed: int, eps: float) -> float:
    """Return the largest difference of the outputs, relative to the largest output."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((CASES, INPUTS)) + 0.5
    weight = rng.standard_normal((UNITS, INPUTS))
    shift = rng.standard_normal(INPUTS)
    y = NORMS[norm](x, weight, eps)
    changed = NORMS[norm](*CHANGES[change](x, weight, factor, shift), eps)
    return float(np.abs(changed - y).max() / np.abs(y).max())


def measure(options: argparse.Namespace, steps: Steps) -> Outcome:
    """Make every change to every normalization, with every seed; the worst seed counts."""
    steps.plan(len(NORMS))
    claims, figures = [], {}
    for norm, expected in PAPER.items():
        worst, least, exact, with_eps = [], [], [], []
        for change in CHANGES:
            of = partial(difference, norm, change)
            runs = [of(3.0, seed, 0.0) for seed in range(options.seeds)]
            worst.append(max(runs))
            least.append(min(runs))
            exact.append(max(of(4.0, seed, 0.0) for seed in range(options.seeds)))
            with_eps.append(max(of(3.0, seed, 1e-5) for seed in range(options.seeds)))
        figures[norm] = {
            "changes": list(CHANGES),
            "difference": worst,
            "difference_by_a_factor_of_4": exact,
            "difference_with_eps_1e-5": with_eps,
        }
        for place, (change, invariant) in enumerate(zip(CHANGES, expected, strict=True)):
            measured = worst[place] < ROUNDING
            bits = ", the same bits if by 4" if exact[place] == 0 and "scaled" in change else ""
            shown = worst[place] if measured else least[place]
            differs = least[place] > 1e-3
            claims.append(
                Claim(
                    f"{norm}, {change}",
                    "invariant" if invariant else "no",
                    f"{'invariant' if measured else 'no'}: {shown:.1e}{bits}",
                    "holds" if (measured if invariant else differs) else "does not hold",
                )
            )
        steps.step(norm)
    return Outcome(figures, claims, draw(figures))


def draw(figures: dict[str, dict[str, list[float]]]) -> Figure:
    """Colour each cell by the size of the difference."""
    values = np.array([row["difference"] for row in figures.values()])
    exponents = np.log10(np.maximum(values, 1e-17))
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(exponents, cmap="cividis_r", vmin=-17, vmax=0, aspect="auto")
    axes.set_xticks(range(len(CHANGES)), [name.replace(" re-", "\nre-") for name in CHANGES])
    axes.set_yticks(range(len(NORMS)), list(NORMS))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        text = f"invariant\n{value:.0e}" if value < ROUNDING else f"{value:.2g}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color="white" if exponents[row, column] > -8 else "black",
        )
    bar = figure.colorbar(image, ticks=[-15, -10, -5, 0], pad=0.01)
    bar.ax.set_yticklabels(["1e-15", "1e-10", "1e-5", "1"])
    bar.outline.set_visible(False)
    axes.set_title("Largest difference of the outputs, relative to the largest output")
    return figure


# sphinx_gallery_thumbnail_path = "gallery/results/invariance.png"
if __name__ == "__main__":
    sys.exit(main(measure, name="invariance", doc=__doc__, options={}))
