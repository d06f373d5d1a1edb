"""Arrays seen as channels: (outer, C, inner), whatever their shape and channel axis."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from normlib.arrays import DOUBLE, Array, as_like, check_channel_axis, required_like

__all__ = ["Channels"]


class Channels(NamedTuple):
    """How x is seen as (outer, C, inner); with a mask, channels last as (rows, C, 1)."""

    axis: int
    n_channels: int
    last: bool  # x is seen with its channel axis moved to the end
    shape: tuple[int, int, int]
    what: str  # the axis, as error messages name it

    @classmethod
    def of(cls, x: Array, channel_axis: int, *, last: bool = False) -> "Channels":
        return _channels(x.shape, check_channel_axis(channel_axis, x.ndim), last)

    @property
    def values(self) -> int:
        """Values in each channel."""
        return self.shape[0] * self.shape[2]

    def flatten(self, x: Array) -> Array:
        if self.last:
            x = np.moveaxis(x, self.axis, -1)
        return np.ascontiguousarray(x).reshape(self.shape)

    def restore(self, y: Array, like: Array, out: Array | None = None) -> Array:
        """The view's values in the axes and shape of x, written to out if given."""
        if self.last:
            others = like.shape[: self.axis] + like.shape[self.axis + 1 :]
            y = np.moveaxis(y.reshape(*others, self.n_channels), -1, self.axis)
        else:
            y = y.reshape(like.shape)
        if out is None:
            return np.ascontiguousarray(y)
        out[...] = y
        return out

    def parameter(self, value: ArrayLike | None, name: str, dtype: np.dtype[Any]) -> Array | None:
        return as_like(value, name, (self.n_channels,), dtype, self.what)

    def statistic(self, value: ArrayLike, name: str) -> Array:
        return required_like(value, name, (self.n_channels,), DOUBLE, self.what)


@functools.lru_cache(maxsize=256)
def _channels(shape: tuple[int, ...], axis: int, last: bool) -> Channels:
    n = shape[axis]
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if last:
        view = (outer * inner, n, 1)
    elif n == 1:
        view = (1, 1, outer * inner)
    else:
        view = (outer, n, inner)
    return Channels(axis, n, last, view, f"channel axis {axis} of x")
