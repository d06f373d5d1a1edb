"""Channels in groups, for group and instance norm: check, view, call a kernel.

The kernels see (N, C, inner), or (N, inner, C) where the channels come last. Other places of the
channels are transposed, there and back.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib._kernels.buffers import aligned_like
from normlib.arrays import (
    DOUBLE,
    SINGLE,
    Array,
    as_float,
    as_integer,
    as_like,
    check_channel_axis,
    check_eps,
    check_out,
    required_like,
    writable_directly,
)
from normlib.errors import ShapeError
from normlib.functional import half
from normlib.threads import threads_for

__all__ = ["differentiate", "normalize"]

# Shorter planes are taken element by element, with gain and bias repeated along them (groups.pxd).
_SHORT_PLANE = 32
# Elements of a half type that are widened at a time: with their output they stay in the cache.
_HALVES = 1 << 16


class _Groups(NamedTuple):
    """How x is seen as (N, C, inner), or (N, inner, C), the channels in groups."""

    axis: int
    last: bool  # (N, inner, C)
    groups: int
    shape: tuple[int, int, int]
    what: str  # the axis, as error messages name it

    @classmethod
    def of(cls, x: Array, groups: int | None, channel_axis: int) -> "_Groups":
        """groups None: as many as channels."""
        if x.ndim < 2:
            raise ShapeError(
                f"x must have an axis of samples, the first, and one of channels; got shape "
                f"{x.shape}. Take one sample as x[None]"
            )
        axis = check_channel_axis(channel_axis, x.ndim)
        if axis == 0:
            raise ShapeError(
                f"channel_axis must not be the first axis of x, that of the samples; got "
                f"{channel_axis}"
            )
        channels = x.shape[axis]
        if groups is None:
            return _groups(x.shape, axis, max(channels, 1))
        groups = as_integer("groups", groups, minimum=1)
        if channels % groups:
            raise ShapeError(
                f"groups must divide the {channels} channels of axis {axis} of x; got {groups}"
            )
        return _groups(x.shape, axis, groups)

    @property
    def channels(self) -> int:
        return self.shape[2 if self.last else 1]

    @property
    def inner(self) -> int:
        return self.shape[1 if self.last else 2]

    @property
    def statistics(self) -> tuple[int, int]:
        """Shape of the statistics."""
        return self.shape[0], self.groups if self.channels else 0

    @property
    def moved(self) -> bool:
        """Whether the view has the axes of x in another order."""
        return self.axis > 1 and not self.last

    def flatten(self, x: Array) -> Array:
        """x as it is seen, C-contiguous; copied only if it must be."""
        if self.moved:
            x = np.moveaxis(x, self.axis, 1)
        return np.ascontiguousarray(x).reshape(self.shape)

    def restore(self, y: Array, like: Array, out: Array | None = None) -> Array:
        """The view's values in the axes and shape of x, written to out if given."""
        if self.moved:
            others = like.shape[1 : self.axis] + like.shape[self.axis + 1 :]
            y = np.moveaxis(y.reshape(self.shape[0], self.channels, *others), 1, self.axis)
        else:
            y = y.reshape(like.shape)
            if out is None:
                return y
        if out is None:
            out = aligned_like(self.flatten(like)).reshape(like.shape)
        out[...] = y
        return out

    def parameter(self, value: ArrayLike | None, name: str, dtype: np.dtype[Any]) -> Array | None:
        return as_like(value, name, (self.channels,), dtype, self.what)

    def statistic(self, value: ArrayLike, name: str) -> Array:
        return required_like(value, name, self.statistics, DOUBLE, "the samples and groups of x")


@functools.lru_cache(maxsize=256)
def _groups(shape: tuple[int, ...], axis: int, groups: int) -> _Groups:
    inner = math.prod(shape[1:axis]) * math.prod(shape[axis + 1 :])
    last = axis == len(shape) - 1 and inner > 1
    view = (shape[0], inner, shape[axis]) if last else (shape[0], shape[axis], inner)
    return _Groups(axis, last, groups, view, f"channel axis {axis} of x")


def _elements(
    view: _Groups, values: Array, gain: Array | None, bias: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """values, gain and bias as a kernel takes them fastest: short planes element by element."""
    _, channels, inner = view.shape
    if inner == 1 or inner >= _SHORT_PLANE:
        return values, gain, bias
    gain = None if gain is None else np.repeat(gain, inner)
    bias = None if bias is None else np.repeat(bias, inner)
    return values.reshape(-1, channels * inner, 1), gain, bias


def normalize(
    x: ArrayLike,
    groups: int | None,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    channel_axis: int,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    plain = _kernels.group_norm.group_norm_plain(
        x, groups, gain, bias, channel_axis, eps, out, statistics, threads_for
    )
    if plain is not None:
        return plain
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    view = _Groups.of(x, groups, channel_axis)
    if groups is None:
        _require_two(view, x)
    computed = SINGLE if x.dtype.itemsize == 2 else x.dtype
    gain = view.parameter(gain, "gain", computed)
    bias = view.parameter(bias, "bias", computed)
    check_out(out, x)
    if x.size == 0:
        y = np.empty(x.shape, x.dtype) if out is None else out
        nothing = np.full(view.statistics, np.nan) if statistics else None
        return y, nothing, None if nothing is None else nothing.copy()
    if x.dtype.itemsize == 2:
        return _halves(x, view, gain, bias, eps, out, statistics)
    return _normalize(x, view, gain, bias, eps, out, statistics)


def _normalize(
    x: Array,
    view: _Groups,
    gain: Array | None,
    bias: Array | None,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    values = view.flatten(x)
    mean = np.empty(view.statistics) if statistics else None
    rstd = np.empty(view.statistics) if statistics else None
    direct = not view.moved and out is not None and writable_directly(out, values, gain, bias)
    y_values = out.reshape(values.shape) if direct and out is not None else aligned_like(values)
    forward = _kernels.group_norm.group_norm_forward
    if view.last:
        forward = _kernels.group_columns.group_columns_forward
    elif gain is None and bias is None:  # a group is a plane
        values = values.reshape(*view.statistics, -1)
    else:
        values, gain, bias = _elements(view, values, gain, bias)
    forward(values, view.groups, gain, bias, eps, y_values, mean, rstd, threads_for(x.size))
    y = out if direct and out is not None else view.restore(y_values, x, out)
    return y, mean, rstd


def _halves(
    x: Array,
    view: _Groups,
    gain: Array | None,
    bias: Array | None,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    """A half type, some samples at a time in float32."""
    y = np.empty(x.shape, x.dtype)
    mean = np.empty(view.statistics) if statistics else None
    rstd = np.empty(view.statistics) if statistics else None
    size = max(1, _HALVES // x[0].size)
    for first in range(0, len(x), size):
        some = slice(first, first + size)
        wide = half.widen(x[some])
        part = view._replace(shape=(len(wide), *view.shape[1:]))
        wide, *kept = _normalize(wide, part, gain, bias, eps, None, statistics)
        half.narrow(wide, y[some])
        if mean is not None and rstd is not None:
            mean[some], rstd[some] = (cast(Array, value) for value in kept)
    if out is not None:
        out[...] = y
        y = out
    return y, mean, rstd


def _require_two(view: _Groups, x: Array) -> None:
    if view.inner == 1:
        raise ShapeError(
            "instance statistics need at least two values per channel; got 1 in x of shape "
            f"{x.shape}. Give x axes beside those of samples and channels, or use layer_norm()"
        )


def differentiate(
    dy: ArrayLike,
    x: ArrayLike,
    groups: int | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    channel_axis: int,
) -> tuple[Array, Array | None, Array]:
    plain = _kernels.group_norm_backward.group_norm_backward_plain(
        dy, x, groups, mean, rstd, gain, channel_axis, threads_for
    )
    if plain is not None:
        return plain
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        gradients = differentiate(
            half.widened(dy), half.widen(x), groups, mean, rstd, gain, channel_axis
        )
        return cast(tuple[Array, Array | None, Array], half.rounded(x, gradients))
    view = _Groups.of(x, groups, channel_axis)
    if groups is None:
        _require_two(view, x)
    dy = required_like(dy, "dy", x.shape, x.dtype, "x")
    mean = view.statistic(mean, "mean")
    rstd = view.statistic(rstd, "rstd")
    gain = view.parameter(gain, "gain", x.dtype)
    if x.size == 0:
        zeros = np.zeros(view.channels, x.dtype)
        return np.empty(x.shape, x.dtype), None if gain is None else zeros.copy(), zeros
    values = view.flatten(x)
    dx = aligned_like(values)
    backward = _kernels.group_norm_backward.group_norm_backward
    channels = view.channels
    gains = gain
    if view.last:
        backward = _kernels.group_columns_backward.group_columns_backward
    else:
        values, gains, _ = _elements(view, values, gain, None)
        channels = values.shape[1]
    dgain, dbias = np.empty(channels), np.empty(channels)
    backward(
        view.flatten(dy), values, view.groups, gains, mean, rstd, dx, dgain, dbias,
        threads_for(x.size),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        sums = [total.reshape(view.channels, -1).sum(1) for total in (dgain, dbias)]
        dgain, dbias = (total.astype(x.dtype) for total in sums)
    return view.restore(dx, x), None if gain is None else dgain, dbias
