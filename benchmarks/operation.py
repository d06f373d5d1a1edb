"""What an operation is, to those that measure it: shapes, arrays, right outputs, work."""

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["EPS", "Array", "Operation", "Shape", "aligned_empty"]

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

EPS = 1e-5


class Operation(abc.ABC):
    """An operation; each kind is a dataclass, has its own inputs, and its own roofline."""

    #: For people.
    title: str
    #: Measured unless others are asked for.
    shapes: Sequence[Shape]
    #: The geometric mean of the ratios to reach.
    goal: float
    #: Of x, that are measured.
    dtypes: Sequence[str]
    #: Measured with ``--quick``.
    quick: Sequence[Shape]
    #: Whether `shapes` are measured whatever is asked for.
    fixed: bool = False
    #: Another operation, whose peers are timed too, and in one word what it is.
    beside: str = ""
    beside_kind: str = "plain"
    #: Whether normlib alone is timed there, instead of its peers; the least ratio to reach at a
    #: shape, and the geometric mean.
    beside_own: bool = False
    beside_floor: float = 1.0
    beside_goal: float = 1.0
    #: The method with which a peer takes part; "": that of the operation's name.
    method: ClassVar[str] = ""
    #: What work per second is counted in, and the same of what it is compared with.
    unit: ClassVar[str]
    roof: ClassVar[str]
    #: The method with which a peer runs the roofline.
    roof_method: ClassVar[str]
    #: Whether the roofline is the best time of each that runs it, or the median.
    best_roof: ClassVar[bool] = False
    #: The least ratio to reach at a shape, and that where the rival itself is near the roof, if it
    #: is another one.
    floor: float
    near_floor: float | None = None
    #: Error allowed to a contestant, by dtype, of the largest value of each output: tells a wrong
    #: formula from another order of summing, not an exact kernel from a sloppy one.
    tolerances: ClassVar[dict[str, float]]

    @abc.abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether it takes that shape."""

    @abc.abstractmethod
    def inputs(self, shape: Shape, dtype: str, offset: int) -> Any:
        """Seeded arrays, each `offset` bytes into a cache line."""

    @abc.abstractmethod
    def expected(self, shape: Shape, dtype: str, offset: int) -> tuple[Array, ...]:
        """The outputs for those inputs, in float64."""

    @abc.abstractmethod
    def work(self, shape: Shape, dtype: str) -> float:
        """Bytes moved, or operations done, by a perfect kernel."""

    @abc.abstractmethod
    def roof_work(self, shape: Shape, dtype: str) -> float:
        """The same of the roofline."""

    def loop(self) -> str:
        """Which of its loops normlib runs, where there is a choice."""
        return ""


def aligned_empty(shape: Shape, dtype: str, offset: int = 0) -> Array:
    """An uninitialized array that starts `offset` bytes into a cache line of 64."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(n_bytes + 128, np.uint8)
    first = -buffer.ctypes.data % 64 + offset
    return buffer[first : first + n_bytes].view(dtype).reshape(shape)
