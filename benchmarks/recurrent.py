"""What the group ``rnn`` measures: recurrent networks of one layer, shapes (T, N, I, H).

The oracle is normlib's own model in float64, going step by step in Python: another path than the
fused loop in float32 that is timed, and the tests compare it with PyTorch and with the formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

import normlib
from benchmarks.operation import EPS, Array, Operation, Shape, aligned_empty

__all__ = ["RECURRENT", "Recurrent", "RecurrentInputs", "Square"]

# Tuples, as an operation is looked up in a cache.
SHAPES: Sequence[Shape] = (
    (100, 1, 128, 256),
    (100, 1, 512, 512),
    (100, 8, 256, 256),
    (100, 32, 256, 256),
    (100, 64, 512, 512),
    (50, 128, 512, 1024),
    (784, 32, 1, 128),
)
QUICK: Sequence[Shape] = ((100, 8, 256, 256),)
STEP: Sequence[Shape] = ((1, 1, 64, 64),)
# Geometric means to reach, by mode and normalizer: of layer norm, to TorchScript's.
GOALS = {
    ("infer", "noop"): 1.25,
    ("infer", "layer"): 2.3,
    ("train", "noop"): 1.3,
    ("train", "layer"): 2.5,
    ("step", "noop"): 3.0,
}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
# Rows, columns and depth of the product whose rate is the roof.
SQUARE = 512


class Square(NamedTuple):
    """Two matrices to multiply."""

    a: Array
    b: Array


class RecurrentInputs(NamedTuple):
    """A network and what goes into it.

    parameters: all weights and biases, and the normalizers' parameters and running statistics, by
    name, as `normlib.RNN.state_dict` has them. dy: the gradient of y.
    """

    cell: str
    norm: str
    mode: str  # "infer", "train" or "step"
    x: Array
    dy: Array
    parameters: dict[str, Array]

    @property
    def sizes(self) -> tuple[int, int]:
        """I and H."""
        return self.x.shape[-1], self.dy.shape[-1]

    @property
    def square(self) -> Square:
        """What the roofline multiplies."""
        return _square(self.x.dtype.name)

    def model(self, dtype: str | None = None) -> normlib.RNN:
        """The network with these parameters."""
        rnn = normlib.RNN(
            *self.sizes,
            cell=self.cell,
            norm=self.norm,
            norm_config={"eps": EPS},
            rng=0,
            dtype=dtype or self.x.dtype,
        )
        rnn.load_state_dict(self.parameters)
        return rnn


@dataclass(frozen=True)
class Recurrent(Operation):
    """One cell with one normalizer; its operations are those of the products with the weights."""

    title: str
    shapes: Sequence[Shape]
    quick: Sequence[Shape]
    cell: str
    norm: str
    mode: str
    beside: str = ""
    beside_kind: str = "plain"
    beside_own: bool = False
    beside_floor: float = 1.0
    beside_goal: float = 1.0
    fixed: bool = False
    goal: float = 1.0
    floor: float = 1.0
    dtypes: Sequence[str] = ("float32",)

    method: ClassVar[str] = "recurrent"
    unit: ClassVar[str] = "GFLOP/s"
    roof: ClassVar[str] = "peak"
    roof_method: ClassVar[str] = "product"
    best_roof: ClassVar[bool] = True
    tolerances: ClassVar[dict[str, float]] = {"float32": 1e-4}

    def fits(self, shape: Shape) -> bool:
        """Whether it is T, N, I, H, with as many rows as statistics are taken of."""
        return len(shape) == 4 and (shape[1] > 1 or (self.mode, self.norm) != ("train", "batch"))

    def inputs(self, shape: Shape, dtype: str, offset: int) -> RecurrentInputs:
        """Arrays are shared by the operations of a shape."""
        x, dy = _arrays(shape, dtype, offset)
        parameters = _parameters(self.cell, self.norm, shape[2:], dtype, offset)
        return RecurrentInputs(self.cell, self.norm, self.mode, x, dy, parameters)

    def expected(self, shape: Shape, dtype: str, offset: int) -> tuple[Array, ...]:
        """In training dx and the gradients by name; else y, h, and c where there is one."""
        return _expected(self, shape, dtype, offset)

    def work(self, shape: Shape, dtype: str) -> float:
        """Multiplications and additions; backward there are two products for each one forward."""
        n_steps, n_batch, n_inputs, hidden = shape
        products = n_steps * n_batch * GATES[self.cell] * hidden * (n_inputs + hidden)
        return 2.0 * products * (3 if self.mode == "train" else 1)

    def roof_work(self, shape: Shape, dtype: str) -> float:
        """Of the product of two square matrices."""
        return 2.0 * SQUARE**3

    def loop(self) -> str:
        """Whether time steps run in the fused loop or step by step."""
        path = normlib.RNN(1, 2, cell=self.cell, norm=self.norm).path
        return path.training if self.mode == "train" else path.inference


def _draw(rng: np.random.Generator, shape: Shape, dtype: str, offset: int) -> Array:
    array = aligned_empty(shape, dtype, offset)
    rng.standard_normal(dtype=array.dtype.type, out=array.reshape(-1))
    return array


@lru_cache(maxsize=1)
def _square(dtype: str) -> Square:
    rng = np.random.default_rng(1607)
    return Square(*(_draw(rng, (SQUARE, SQUARE), dtype, 0) for _ in range(2)))


@lru_cache(maxsize=1)
def _arrays(shape: Shape, dtype: str, offset: int) -> tuple[Array, Array]:
    n_steps, n_batch, n_inputs, hidden = shape
    rng = np.random.default_rng(20160721)
    x = _draw(rng, (n_steps, n_batch, n_inputs), dtype, offset)
    return x, _draw(rng, (n_steps, n_batch, hidden), dtype, offset)


@lru_cache(maxsize=2)
def _parameters(cell: str, norm: str, sizes: Shape, dtype: str, offset: int) -> dict[str, Array]:
    """Weights as they start; biases and running statistics near theirs, gains near 0.5.

    With gains of 1 a layer-normalized network is chaotic: over 100 steps a rounding error grows a
    hundredfold, in float64 too, and right results could not be told from wrong ones.
    """
    rng = np.random.default_rng(1603)
    state = normlib.RNN(*sizes, cell=cell, norm=norm, rng=rng, dtype=dtype).state_dict()
    for name, values in state.items():
        if name.endswith("num_batches"):
            continue
        array = aligned_empty(values.shape, values.dtype.name, offset)
        array[...] = values
        if not name.startswith("weight"):
            array += 0.1 * rng.uniform(-1, 1, values.shape)
        if name.endswith("gain"):
            array *= 0.5
        state[name] = array
    return state


@lru_cache(maxsize=3)
def _expected(op: Recurrent, shape: Shape, dtype: str, offset: int) -> tuple[Array, ...]:
    inputs = op.inputs(shape, dtype, offset)
    rnn = inputs.model("float64")
    for direction in rnn._directions:
        direction.may_fuse = False
    x = inputs.x.astype(np.float64)
    if op.mode == "train":
        _, _, cache = rnn.forward(x)
        dx, _, grads = rnn.backward(inputs.dy.astype(np.float64), cache)
        return dx, *(grads[name] for name in sorted(grads))
    y, state = rnn(x)
    return y, *(state if isinstance(state, tuple) else (state,))


def _operations() -> dict[str, Recurrent]:
    """The plain cells first: normalized ones are timed beside them."""
    titles = {"noop": "{}", "layer": "layer-normalized {}", "batch": "batch-normalized {}"}
    cells = {"lstm": "LSTM", "gru": "GRU", "rnn": "vanilla RNN"}
    modes = {
        "infer": ("", "{}", SHAPES, QUICK),
        "train": ("_training", "{}, training", SHAPES, QUICK),
        "step": ("_step", "{}, one step", STEP, STEP),
    }
    choices = [
        *(("infer", cell, norm) for cell in cells for norm in ("noop", "layer")),
        *(("train", cell, norm) for cell in cells for norm in ("noop", "layer")),
        *(("step", "lstm", norm) for norm in ("noop", "layer")),
    ]
    choices.insert(2, ("infer", "lstm", "batch"))
    choices.insert(choices.index(("train", "lstm", "layer")) + 1, ("train", "lstm", "batch"))
    # Rows of a batch meet in its training: how much slower is that?
    operations = {}
    for mode, cell, norm in choices:
        suffix, title, shapes, quick = modes[mode]
        plain = norm == "noop"
        by_batch = (mode, norm) == ("train", "batch")
        operations[cell + ("" if plain else f"_{norm}") + suffix] = Recurrent(
            title=title.format(titles[norm].format(cells[cell])),
            shapes=tuple(s for s in shapes if s[1] > 1) if by_batch else shapes,
            quick=quick,
            fixed=mode == "step",
            beside="" if plain else f"{cell}_layer{suffix}" if by_batch else cell + suffix,
            cell=cell,
            norm=norm,
            mode=mode,
            beside_kind="layer-normalized" if by_batch else "plain",
            beside_own=by_batch,
            beside_floor=0.6 if by_batch else 1.0,
            beside_goal=0.6 if by_batch else 1.1 if (mode, norm) == ("infer", "layer") else 1.0,
            goal=GOALS.get((mode, norm), 1.0),
            floor=1.3 if norm == "layer" and mode != "step" else 1.0,
        )
    return operations


RECURRENT = _operations()
