"""Normalizations: operations, shapes, the arrays they work on, and what must come out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from benchmarks import formulas
from benchmarks.operation import EPS, Array, Operation, Shape, aligned_empty

try:
    import ml_dtypes  # noqa: F401  (it gives NumPy the type)
except ModuleNotFoundError:
    HALVES: tuple[str, ...] = ("float16",)
else:
    HALVES = ("float16", "bfloat16")

__all__ = ["HALVES", "LARGE", "NORMS", "Inputs"]


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
LARGE: list[Shape] = [(512, 768), (4096, 768), (8192, 1024), (32768, 1024), (256, 16384)]
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
    floor: float = 1.15
    near_floor: float | None = 1.05

    unit: ClassVar[str] = "GB/s"
    roof: ClassVar[str] = "copy"
    roof_method: ClassVar[str] = "copy"
    tolerances: ClassVar[dict[str, float]] = {
        "float32": 1e-4,
        "float64": 1e-10,
        # PyTorch's gradients of gain and bias, which it sums in the half type, are off by 0.02 and
        # 0.15 at 8192 rows, normlib's by a rounding.
        "float16": 5e-2,
        "bfloat16": 3e-1,
    }

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
SINGLE = ("float32", *HALVES)
NORMS = {
    "layer_norm_out": Op("layer norm, out= given", ROWS, 2, _layer_norm, 2.5, (*BOTH, *HALVES)),
    "layer_norm": Op("layer norm", ROWS, 2, _layer_norm, 2.5, (*BOTH, *HALVES)),
    "layer_norm_backward": Op("layer norm, backward", ROWS, 3, _layer_norm_backward, 2.0, SINGLE),
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
    "rms_norm_out": Op("RMS norm, out= given", ROWS, 2, _rms_norm, 2.5, SINGLE),
    "rms_norm": Op("RMS norm", ROWS, 2, _rms_norm, 2.5, SINGLE),
    "rms_norm_backward": Op("RMS norm, backward", ROWS, 3, _rms_norm_backward, 2.0, SINGLE),
    "add_layer_norm_out": Op(
        "addition and layer norm, out= given", ROWS, 4, _add_layer_norm, 1.5, SINGLE
    ),
    "add_layer_norm": Op("addition and layer norm", ROWS, 4, _add_layer_norm, 1.5, SINGLE),
    "add_rms_norm": Op("addition and RMS norm", ROWS, 4, _add_rms_norm, 1.5, SINGLE),
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


@lru_cache(maxsize=1)
def _inputs(shape: Shape, dtype: str, offset: int) -> Inputs:
    rng = np.random.default_rng(20160721)

    def draw(shape: Shape, scale: float, shift: float) -> Array:
        array = aligned_empty(shape, dtype, offset)
        if dtype in HALVES:
            array[...] = rng.standard_normal(shape, np.float32) * np.float32(scale) + shift
            return array
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


@lru_cache(maxsize=1)
def _expected(
    oracle: Callable[[Inputs], tuple[Array, ...]], shape: Shape, dtype: str, offset: int
) -> tuple[Array, ...]:
    inputs = _inputs(shape, dtype, offset)
    return oracle(Inputs(*(array.astype(np.float64) for array in inputs)))
