"""Recurrent networks, compared: how fast they learn, and what happens inside over time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import normlib
from experiments.curves import NAMES, Runs, less
from experiments.data import Part
from experiments.experiment import Claim, compare, mean_and_spread
from experiments.training import Curve, Model, train
from normlib.demo.loss import cross_entropy
from normlib.diagnostics import GradientNorms, HiddenState, gradient_norms, hidden_state
from normlib.diagnostics.plots import GREY, band, bare, plot_gradients, plot_hidden_states

__all__ = ["CELLS", "NORMS", "Inside", "LanguageModel", "claims", "draw", "learn", "look_inside"]

Array: TypeAlias = npt.NDArray[Any]

NORMS = ("noop", "batch", "layer")
CELLS = {"lstm": "LSTM", "gru": "GRU"}


class LanguageModel:
    """A recurrent network that predicts the next character, at every time step.

    Parameters
    ----------
    vocabulary, hidden_size, n_steps : int
        V, H, and the time steps for which batch norm keeps statistics.
    cell, norm : str
        As `normlib.RNN` takes them.
    seed : int
        Draws the weights, which are the same for every normalizer.
    """

    def __init__(
        self, vocabulary: int, hidden_size: int, n_steps: int, *, cell: str, norm: str, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        config = {"steps": n_steps} if norm == "batch" else None
        self.rnn = normlib.RNN(
            vocabulary, hidden_size, cell=cell, norm=norm, norm_config=config, rng=rng
        )
        bound = 1 / np.sqrt(hidden_size)
        shape = (hidden_size, vocabulary)
        self.weight = rng.uniform(-bound, bound, shape).astype(np.float32)
        self.bias = np.zeros(vocabulary, np.float32)

    @property
    def parameters(self) -> dict[str, Array]:
        """All that is learned, as live arrays."""
        return {**self.rnn.parameters, "weight": self.weight, "bias": self.bias}

    def loss_and_gradients(self, part: Part) -> tuple[float, float, dict[str, Array]]:
        """Return loss and accuracy per character, and the gradients of the loss."""
        y, _, cache = self.rnn.forward(part.x)
        rows = y.reshape(-1, y.shape[2])
        scores = rows @ self.weight + self.bias
        loss, accuracy, d_scores = cross_entropy(scores, part.labels.ravel())
        _, _, grads = self.rnn.backward((d_scores @ self.weight.T).reshape(y.shape), cache)
        grads |= {"weight": rows.T @ d_scores, "bias": d_scores.sum(axis=0)}
        return loss, accuracy, grads

    def losses_by_step(self, part: Part) -> Array:
        """Return, in inference, the mean loss at each time step, shape (T,)."""
        y, _ = self.rnn(part.x)
        steps = zip(y, part.labels, strict=True)
        return np.array(
            [cross_entropy(h @ self.weight + self.bias, labels)[0] for h, labels in steps]
        )


def learn(model: Model, drawn: Iterable[Any], *, updates: int, learning_rate: float) -> Curve:
    """Train; return the curve."""
    *_, (_, curve) = train(model, drawn, updates=updates, learning_rate=learning_rate)
    return curve


class Inside:
    """The hidden state of a network and the gradients at each step, before and after training."""

    def __init__(self) -> None:
        self.before: HiddenState | None = None
        self.after: HiddenState | None = None
        self.gradients_before: GradientNorms | None = None
        self.gradients_after: GradientNorms | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        found: dict[str, Any] = {}
        for moment in ("before", "after"):
            state, gradients = getattr(self, moment), getattr(self, f"gradients_{moment}")
            found[moment] = {**state._asdict(), "gradient_by_step": gradients.h[0]}
        return found


def look_inside(rnn: normlib.RNN, x: Array, seed: int) -> tuple[HiddenState, GradientNorms]:
    """Measure the hidden state on x, and a random gradient's way back from the last step."""
    y, _, _ = rnn.forward(x)
    dy = np.random.default_rng(seed).standard_normal(y.shape[1:], dtype=np.float32)
    return hidden_state(y), gradient_norms(rnn, x, dy)


def decay(gradients: GradientNorms) -> float:
    """Return by how many powers of ten a gradient changes on its way back through most steps.

    The first quarter is left out: before a sequence has begun to differ from zero, what is divided
    by is eps.
    """
    norms = gradients.h[0, gradients.h.shape[1] // 4 :]
    return float(abs(np.log10(norms[0] / norms[-1])))


def unrest(state: HiddenState) -> float:
    """Return by how much the norm of the hidden state varies over the later three quarters."""
    norms = state.norm[len(state.norm) // 4 :]
    return float(norms.std() / norms.mean())


def claims(
    runs: dict[str, Runs],
    insides: dict[str, dict[str, list[Inside]]],
    tests: dict[str, dict[str, list[float]]],
    target: float,
    tested: str,
) -> list[Claim]:
    """Judge what the paper says of recurrent networks; `tests` are figures to be low."""
    found = []
    for cell, title in CELLS.items():
        own = runs[cell]
        for other, paper in (
            ("noop", "faster convergence (§6.2, §6.5)"),
            ("batch", "faster than recurrent batch norm (§6.2, figure 2)"),
        ):
            found.append(
                Claim(
                    f"{title}: layer norm needs fewer updates than {_name(other)} to a loss of "
                    f"{target:g}",
                    paper,
                    *less(own, "layer", other, lambda curve: curve.updates_to(target)),
                )
            )
        found += [
            Claim(
                f"{title}: layer norm needs less time than {_name(other)} to it",
                "reduces training time (abstract)",
                *less(own, "layer", other, lambda curve: curve.seconds_to(target), " s"),
            )
            for other in ("noop", "batch")
        ]
        found += [
            Claim(
                f"{title}: layer norm ends with a lower training loss than {_name(other)}",
                "better or equal (§6)",
                *less(own, "layer", other, lambda curve: float(curve.smooth()[-1])),
            )
            for other in ("noop", "batch")
        ]

        found += [
            Claim(
                f"{title}: layer norm ends with a lower {tested} than {_name(other)}",
                "better or equal (§6)",
                "; ".join(
                    f"{NAMES[norm]} {mean_and_spread(tests[cell][norm])}"
                    for norm in ("layer", other)
                ),
                compare(tests[cell]["layer"], tests[cell][other]),
            )
            for other in ("noop", "batch")
        ]

        def values(norm: str, of: Callable[[Inside], float], cell: str = cell) -> list[float]:
            return [of(inside) for inside in insides[cell][norm]]

        for what, of in (
            (
                "before training, gradients change less with layer norm (powers of ten, through "
                "the later three quarters of the steps)",
                lambda inside: decay(inside.gradients_before),
            ),
            ("the same after training", lambda inside: decay(inside.gradients_after)),
            (
                "after training, layer norm keeps the hidden state's norm steadier (its deviation "
                "over the same steps, relative to its mean)",
                lambda inside: unrest(inside.after),
            ),
        ):
            layer, none = values("layer", of), values("noop", of)
            batch = values("batch", of)
            found.append(
                Claim(
                    f"{title}: {what}",
                    "more stable hidden-to-hidden dynamics (§3.1)",
                    f"layer norm {mean_and_spread(layer)}; none {mean_and_spread(none)}; batch "
                    f"norm {mean_and_spread(batch)}",
                    compare(layer, none),
                )
            )
    return found


def draw(
    runs: dict[str, Runs], insides: dict[str, dict[str, list[Inside]]], target: float
) -> Figure:
    """Draw, for each cell, learning over updates and over time, and the inside of the network."""
    figure = Figure(figsize=(13, 9.5 * len(runs)), layout="constrained")
    for part, (cell, own) in zip(
        np.atleast_1d(figure.subfigures(len(runs), 1)), runs.items(), strict=True
    ):
        part.suptitle(CELLS[cell], fontsize="x-large")
        grid = part.add_gridspec(3, 4)
        by_update, by_second = (part.add_subplot(grid[0, place]) for place in (0, 1))
        for place, (norm, curves) in enumerate(own.items()):
            losses = np.array([curve.smooth() for curve in curves])
            numbers = np.arange(1, losses.shape[1] + 1)
            seconds = np.mean([np.cumsum(curve.seconds) for curve in curves], axis=0)
            band(by_update, numbers, losses, NAMES[norm], place)
            band(by_second, seconds, losses, NAMES[norm], place)
        by_update.legend(frameon=False)
        by_update.set_ylabel("training loss")
        for axes, label in ((by_update, "updates"), (by_second, "seconds of training, one thread")):
            axes.axhline(target, color=GREY, linestyle=":", linewidth=1)
            axes.set_xlabel(label)
            bare(axes)
        for place, moment in enumerate(("before", "after")):
            axes = part.add_subplot(grid[0, 2 + place])
            norms = {
                NAMES[norm]: [getattr(one, f"gradients_{moment}") for one in many]
                for norm, many in insides[cell].items()
            }
            plot_gradients(norms, axes)
            axes.get_legend().remove()
            axes.set_title(f"gradient, {moment} training", fontsize="medium")
            states = {
                NAMES[norm]: [getattr(one, moment) for one in many]
                for norm, many in insides[cell].items()
            }
            row = [part.add_subplot(grid[1 + place, column]) for column in range(4)]
            plot_hidden_states(states, row)
            row[0].get_legend().remove()
            row[0].set_ylabel(f"hidden state, {moment} training")
    return figure


def _name(norm: str) -> str:
    return {"noop": "no normalization", "batch": "batch norm"}[norm]


def shuffled(parts: Callable[[], Part]) -> Iterator[Part]:
    """Give what a function draws, without end."""
    while True:
        yield parts()
