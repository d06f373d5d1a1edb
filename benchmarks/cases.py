"""What is measured: operations, shapes, the arrays they work on, and what must come out."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from benchmarks import formulas
from benchmarks.operation import EPS, Array, Operation, Shape, aligned_empty
from benchmarks.recurrent import RECURRENT

__all__ = [
    "EPS",
    "GROUPS",
    "OPS",
    "Array",
    "Case",
    "Inputs",
    "Op",
    "Shape",
    "aligned_empty",
    "check",
    "expected",
    "format_shape",
    "parse_shape",
    "select",
]


class Inputs(NamedTuple):
    """The arrays of a case; out is for contestants that write where they are told."""

    x: Array
    dy: Array
    gain: Array
    bias: Array
    mean: Array  # given statistics, for batch norm at inference
    var: Array
    out: Array

    @property
    def groups(self) -> int:
        """For group norm: 32, or what of it divides the channels."""
        return math.gcd(32, self.x.shape[1])

    @property
    def axes(self) -> tuple[int, ...]:
        """Those that batch norm reduces: all but axis 1."""
        return (0, *range(2, self.x.ndim))

    def channels_last(self) -> tuple[Array, Array]:
        """x and dy with axis 1 last, in new memory."""
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (self.x, self.dy))
        return x, dy

    def by_channel(self, value: Array) -> Array:
        """A (C,) array so that it broadcasts against x."""
        return value.reshape(-1, *[1] * (self.x.ndim - 2))


ROWS: list[Shape] = [
    (1, 768),
    (32, 768),
    (64, 100),
    (64, 512),
    (512, 768),
    (4096, 768),
    (8192, 1024),
    (32768, 1024),
    (131072, 64),
    (256, 16384),
]
IMAGES: list[Shape] = [(32, 64, 56, 56), (8, 256, 28, 28), (128, 32, 8, 8)]
ALL = ROWS + IMAGES
QUICK: list[Shape] = [(64, 512), (8192, 1024), (8, 256, 28, 28)]


@dataclass(frozen=True)
class Op(Operation):
    """A normalization, bound by memory; the roofline is a copy of x.

    Parameters
    ----------
    arrays : int
        Arrays of x's size that a perfect kernel moves: each input and output, once.
    oracle : callable
        ``oracle(inputs)`` gives the outputs, from inputs in float64.
    """

    title: str
    shapes: Sequence[Shape]
    arrays: int
    oracle: Callable[[Inputs], tuple[Array, ...]]
    goal: float
    dtypes: Sequence[str] = ("float32",)
    quick: Sequence[Shape] = tuple(QUICK)
    fixed: bool = False
    min_ndim: int = 2
    max_ndim: int = 2
    min_rows: int = 1

    unit: ClassVar[str] = "GB/s"
    roof: ClassVar[str] = "copy"
    roof_method: ClassVar[str] = "copy"
    floor: ClassVar[float] = 1.15
    near_floor: ClassVar[float] = 1.05
    tolerances: ClassVar[dict[str, float]] = {"float32": 1e-4, "float64": 1e-10}

    def fits(self, shape: Shape) -> bool:
        """Whether it takes that shape."""
        return self.min_ndim <= len(shape) <= self.max_ndim and shape[0] >= self.min_rows

    def inputs(self, shape: Shape, dtype: str, offset: int) -> Inputs:
        """Arrays are shared by the operations of a shape."""
        return _inputs(shape, dtype, offset)

    def expected(self, shape: Shape, dtype: str, offset: int) -> tuple[Array, ...]:
        """The formula's."""
        return _expected(self.oracle, shape, dtype, offset)

    def work(self, shape: Shape, dtype: str) -> float:
        """Bytes; those of gain, bias and statistics are not counted."""
        return self.arrays * _bytes(shape, dtype)

    def roof_work(self, shape: Shape, dtype: str) -> float:
        """Bytes that a copy reads and writes."""
        return 2 * _bytes(shape, dtype)


def _bytes(shape: Shape, dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _layer_norm(i: Inputs) -> tuple[Array, ...]:
    return (formulas.layer_norm(i.x, i.gain, i.bias, EPS),)


def _layer_norm_backward(i: Inputs) -> tuple[Array, ...]:
    mean, var = formulas.moments(i.x, -1)
    return formulas.layer_norm_backward(i.dy, i.x, mean, (var + EPS) ** -0.5, i.gain)


def _batch_norm(i: Inputs) -> tuple[Array, ...]:
    mean, var, gain, bias = map(i.by_channel, (i.mean, i.var, i.gain, i.bias))
    return (formulas.batch_norm(i.x, mean, var, gain, bias, EPS),)


def _batch_norm_forward(i: Inputs) -> tuple[Array, ...]:
    gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
    return (formulas.batch_norm_forward(i.x, gain, bias, EPS, i.axes),)


def _batch_norm_backward(i: Inputs) -> tuple[Array, ...]:
    mean, var = formulas.moments(i.x, i.axes)
    rstd = (var + EPS) ** -0.5
    return formulas.batch_norm_backward(i.dy, i.x, mean, rstd, i.by_channel(i.gain), i.axes)


def _rms_norm(i: Inputs) -> tuple[Array, ...]:
    return (formulas.rms_norm(i.x, i.gain, EPS),)


def _rms_norm_backward(i: Inputs) -> tuple[Array, ...]:
    return formulas.rms_norm_backward(i.dy, i.x, formulas.rms(i.x, EPS), i.gain)


def _add_layer_norm(i: Inputs) -> tuple[Array, ...]:
    return formulas.add_layer_norm(i.x, i.dy, i.gain, i.bias, EPS)


def _add_rms_norm(i: Inputs) -> tuple[Array, ...]:
    return formulas.add_rms_norm(i.x, i.dy, i.gain, EPS)


def _add_layer_norm_backward(i: Inputs) -> tuple[Array, ...]:
    dx, *others = _layer_norm_backward(i)
    return (dx + i.dy, *others)


def _add_rms_norm_backward(i: Inputs) -> tuple[Array, ...]:
    dx, *others = _rms_norm_backward(i)
    return (dx + i.dy, *others)


def _group_norm(i: Inputs) -> tuple[Array, ...]:
    gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
    return (formulas.group_norm(i.x, i.groups, gain, bias, EPS),)


def _group_norm_backward(i: Inputs) -> tuple[Array, ...]:
    return formulas.group_norm_backward(i.dy, i.x, i.groups, i.by_channel(i.gain), EPS)


def _group_norm_last(i: Inputs) -> tuple[Array, ...]:
    (y,) = _group_norm(i)
    return (np.moveaxis(y, 1, -1),)


def _group_norm_last_backward(i: Inputs) -> tuple[Array, ...]:
    dx, *others = _group_norm_backward(i)
    return (np.moveaxis(dx, 1, -1), *others)


def _instance_norm(i: Inputs) -> tuple[Array, ...]:
    gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
    return (formulas.group_norm(i.x, i.x.shape[1], gain, bias, EPS),)


def _instance_norm_backward(i: Inputs) -> tuple[Array, ...]:
    return formulas.group_norm_backward(i.dy, i.x, i.x.shape[1], i.by_channel(i.gain), EPS)


BOTH = ("float32", "float64")
NORMS = {
    "layer_norm_out": Op("layer norm, out= given", ROWS, 2, _layer_norm, 2.5, BOTH),
    "layer_norm": Op("layer norm", ROWS, 2, _layer_norm, 2.5, BOTH),
    "layer_norm_backward": Op("layer norm, backward", ROWS, 3, _layer_norm_backward, 2.0),
    "batch_norm_forward_out": Op(
        "batch norm, training, out= given", ALL, 2, _batch_norm_forward, 2.0, max_ndim=4, min_rows=2
    ),
    "batch_norm_forward": Op(
        "batch norm, training", ALL, 2, _batch_norm_forward, 2.0, max_ndim=4, min_rows=2
    ),
    "batch_norm_out": Op("batch norm, inference, out= given", ALL, 2, _batch_norm, 2.0, max_ndim=4),
    "batch_norm": Op("batch norm, inference", ALL, 2, _batch_norm, 2.0, max_ndim=4),
    "batch_norm_backward": Op(
        "batch norm, backward", ALL, 3, _batch_norm_backward, 2.0, max_ndim=4, min_rows=2
    ),
    "rms_norm_out": Op("RMS norm, out= given", ROWS, 2, _rms_norm, 2.5),
    "rms_norm": Op("RMS norm", ROWS, 2, _rms_norm, 2.5),
    "rms_norm_backward": Op("RMS norm, backward", ROWS, 3, _rms_norm_backward, 2.0),
    "add_layer_norm_out": Op("addition and layer norm, out= given", ROWS, 4, _add_layer_norm, 1.5),
    "add_layer_norm": Op("addition and layer norm", ROWS, 4, _add_layer_norm, 1.5),
    "add_rms_norm": Op("addition and RMS norm", ROWS, 4, _add_rms_norm, 1.5),
    "add_layer_norm_backward": Op(
        "addition and layer norm, backward", ROWS, 3, _add_layer_norm_backward, 1.5
    ),
    "add_rms_norm_backward": Op(
        "addition and RMS norm, backward", ROWS, 3, _add_rms_norm_backward, 1.5
    ),
    "group_norm_out": Op("group norm, out= given", ALL, 2, _group_norm, 1.5, max_ndim=4),
    "group_norm": Op("group norm", ALL, 2, _group_norm, 1.5, max_ndim=4),
    "group_norm_backward": Op(
        "group norm, backward", ALL, 3, _group_norm_backward, 1.5, max_ndim=4
    ),
    "group_norm_last": Op(
        "group norm, channels last", IMAGES, 2, _group_norm_last, 1.5, min_ndim=3, max_ndim=4
    ),
    "group_norm_last_backward": Op(
        "group norm, channels last, backward",
        IMAGES,
        3,
        _group_norm_last_backward,
        1.5,
        min_ndim=3,
        max_ndim=4,
    ),
    "instance_norm": Op("instance norm", IMAGES, 2, _instance_norm, 2.0, min_ndim=3, max_ndim=4),
    "instance_norm_backward": Op(
        "instance norm, backward", IMAGES, 3, _instance_norm_backward, 1.5, min_ndim=3, max_ndim=4
    ),
    "call": Op("layer norm, cost of a call", [(1, 8)], 2, _layer_norm, 1 / 0.6, fixed=True),
}
OPS: dict[str, Operation] = {**NORMS, **RECURRENT}
GROUPS = {"norms": list(NORMS), "rnn": list(RECURRENT)}


@dataclass(frozen=True)
class Case:
    """One operation at one shape and dtype."""

    op: str
    shape: Shape
    dtype: str

    def __str__(self) -> str:
        return f"{self.op} {format_shape(self.shape)} {self.dtype}"

    @property
    def operation(self) -> Operation:
        """What the name says."""
        return OPS[self.op]

    @property
    def beside(self) -> Self | None:
        """The case whose peers are timed too, if any."""
        name = self.operation.beside
        return replace(self, op=name) if name else None

    @property
    def work(self) -> float:
        """Bytes to move, or operations to do."""
        return self.operation.work(self.shape, self.dtype)

    @property
    def roof_work(self) -> float:
        """The same of the roofline."""
        return self.operation.roof_work(self.shape, self.dtype)

    def inputs(self, offset: int = 0) -> Any:
        """Seeded arrays, each `offset` bytes into a cache line."""
        return self.operation.inputs(self.shape, self.dtype, offset)


@lru_cache(maxsize=1)
def _inputs(shape: Shape, dtype: str, offset: int) -> Inputs:
    rng = np.random.default_rng(20160721)

    def draw(shape: Shape, scale: float, shift: float) -> Array:
        array = aligned_empty(shape, dtype, offset)
        rng.standard_normal(dtype=array.dtype.type, out=array.reshape(-1))
        array *= scale
        array += shift
        return array

    params = (shape[1],)
    return Inputs(
        x=draw(shape, 1.5, 0.5),
        dy=draw(shape, 1, 0),
        gain=draw(params, 0.1, 1),
        bias=draw(params, 0.1, 0),
        mean=draw(params, 0.1, 0.5),
        var=np.square(draw(params, 0.1, 1.5)),
        out=draw(shape, 0, 0),  # written, so that its pages are there
    )


def parse_shape(text: str) -> Shape:
    """``"512x768"`` or ``"32x64x56x56"`` as a tuple: rows and features, or four sizes."""
    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) not in (2, 4) or min(shape) < 1:
        raise ValueError(
            "a shape is ROWSxFEATURES or NxCxHxW, such as 512x768, or for recurrent networks "
            f"TxNxIxH, such as 100x32x256x256; got {text!r}"
        )
    return shape


def format_shape(shape: Shape) -> str:
    """The text that `parse_shape` reads."""
    return "x".join(map(str, shape))


def select(
    ops: Sequence[str],
    shapes: Sequence[Shape] | None = None,
    dtypes: Sequence[str] | None = None,
    *,
    quick: bool = False,
) -> list[Case]:
    """Cases of these operations, those of a shape together; shapes that do not fit left out."""

    def cases(name: str) -> Iterator[Case]:
        op = OPS[name]
        own = op.quick if quick and not op.fixed else op.shapes
        if shapes is not None and not op.fixed:
            own = shapes
        for dtype, shape in itertools.product(op.dtypes, own):
            if op.fits(shape) and (dtypes is None or dtype in dtypes):
                yield Case(name, shape, dtype)

    every = list(itertools.chain.from_iterable(cases(name) for name in ops))
    places = {(case.shape, case.dtype): place for place, case in reversed(list(enumerate(every)))}
    return sorted(every, key=lambda case: places[case.shape, case.dtype])


def expected(case: Case, offset: int = 0) -> tuple[Array, ...]:
    """The outputs for the inputs with that offset, in float64."""
    return case.operation.expected(case.shape, case.dtype, offset)


@lru_cache(maxsize=1)
def _expected(
    oracle: Callable[[Inputs], tuple[Array, ...]], shape: Shape, dtype: str, offset: int
) -> tuple[Array, ...]:
    inputs = _inputs(shape, dtype, offset)
    return oracle(Inputs(*(array.astype(np.float64) for array in inputs)))


def check(case: Case, got: Sequence[Array], oracle: Sequence[Array]) -> str | None:
    """What is wrong with a contestant's outputs, or None."""
    if len(got) != len(oracle):
        return f"{len(got)} outputs instead of {len(oracle)}"
    for place, (array, right) in enumerate(zip(got, oracle, strict=True)):
        if array.size != right.size:
            return f"output {place} has shape {array.shape}, not {right.shape}"
        if array.dtype != case.dtype:
            return f"output {place} has dtype {array.dtype}, not {case.dtype}"
        error, largest = np.max(np.abs(array.reshape(right.shape) - right)), np.max(np.abs(right))
        if largest > 0:  # a gradient may be zero throughout
            error /= largest
        if not error <= case.operation.tolerances[case.dtype]:  # NaN too
            return f"output {place} is off by {error:.1e} of its largest value"
    return None
