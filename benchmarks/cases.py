"""What is measured: an operation at a shape and a dtype, and whether its outputs are right."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from benchmarks.norms import HALVES, LARGE, NORMS
from benchmarks.operation import Array, Operation, Shape
from benchmarks.recurrent import RECURRENT

__all__ = ["GROUPS", "OPS", "Case", "check", "expected", "format_shape", "parse_shape", "select"]

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
        for dtype in op.dtypes:
            own = LARGE if dtype in HALVES else op.shapes
            if quick and not op.fixed:
                own = op.quick
            if shapes is not None and not op.fixed:
                own = shapes
            for shape in own:
                if op.fits(shape) and (dtypes is None or dtype in dtypes):
                    yield Case(name, shape, dtype)

    every = list(itertools.chain.from_iterable(cases(name) for name in ops))
    places = {(case.shape, case.dtype): place for place, case in reversed(list(enumerate(every)))}
    return sorted(every, key=lambda case: places[case.shape, case.dtype])


def expected(case: Case, offset: int = 0) -> tuple[Array, ...]:
    """The outputs for the inputs with that offset, in float64."""
    return case.operation.expected(case.shape, case.dtype, offset)


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
