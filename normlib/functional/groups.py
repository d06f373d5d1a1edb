"""Channels in groups, for group and instance norm: check, view as (N, C, inner), call a kernel."""

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
# From so many elements of a sample on, float32 channels that come last stay where they are. Doubles
# do not: their moments need more than sums of doubles.
_LARGE_SAMPLE = 1 << 13
# Elements of a half type that are widened at a time: with their output they stay in the cache.
_HALVES = 1 << 16


class _Groups(NamedTuple):
    """How x is seen as (N, C, inner), the channels in groups."""

    axis: int
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
        return self.shape[1]

    @property
    def statistics(self) -> tuple[int, int]:
        """Shape of the statistics."""
        return self.shape[0], self.groups if self.channels else 0

    def flatten(self, x: Array) -> Array:
        """x as a C-contiguous (N, C, inner), copied only if it must be."""
        if self.axis > 1:
            x = np.moveaxis(x, self.axis, 1)
        return np.ascontiguousarray(x).reshape(self.shape)

    def restore(self, y: Array, like: Array, out: Array | None = None) -> Array:
        """The view's values in the axes and shape of x, written to out if given."""
        if self.axis > 1:
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
    return _Groups(axis, groups, (shape[0], shape[axis], inner), f"channel axis {axis} of x")


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
    last = view.axis == x.ndim - 1 > 1
    if last and x.dtype == SINGLE and x[0].size >= _LARGE_SAMPLE:
        # Also if x must be copied: every other sample has the bits it has in the whole batch.
        x = np.ascontiguousarray(x)
        return _channels_last(x, view, gain, bias, eps, out, statistics)
    return _channels_second(x, view, gain, bias, eps, out, statistics)


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


def _channels_second(
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
    direct = view.axis == 1 and out is not None and writable_directly(out, values, gain, bias)
    y_values = out.reshape(values.shape) if direct and out is not None else aligned_like(values)
    if gain is None and bias is None:  # a group is a plane
        values = values.reshape(*view.statistics, -1)
    else:
        values, gain, bias = _elements(view, values, gain, bias)
    _kernels.group_norm.group_norm_forward(
        values, view.groups, gain, bias, eps, y_values, mean, rstd, threads_for(x.size)
    )
    y = out if direct and out is not None else view.restore(y_values, x, out)
    return y, mean, rstd


def _channels_last(
    x: Array,
    view: _Groups,
    gain: Array | None,
    bias: Array | None,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    """The same without a transposed copy, by the kernels of batch norm.

    A sample's channels have their moments, which are merged by groups. Which way a sample goes
    depends on that sample alone.
    """
    direct = out is not None and writable_directly(out, x, gain, bias)
    y = out if direct and out is not None else aligned_like(x)
    mean, rstd = np.empty(view.statistics), np.empty(view.statistics)
    channels, n_threads = view.channels, threads_for(x[0].size)
    repeats = channels // view.groups
    samples = x.reshape(len(x), -1, channels, 1)
    for n, (sample, target) in enumerate(zip(samples, y.reshape(samples.shape), strict=True)):
        of_channels = _kernels.batch_moments.batch_moments(
            sample, len(sample), channels, 1, eps, n_threads
        )
        with np.errstate(all="ignore"):
            means, rests, variances, _ = (one.reshape(view.groups, -1) for one in of_channels)
            high = means.mean(axis=1)
            apart = (means - high[:, None]) + rests
            low = apart.mean(axis=1)
            var = variances.mean(axis=1) + np.square(apart - low[:, None]).mean(axis=1)
            scale = 1 / np.sqrt(var + eps)
        if not np.isfinite(var).all():
            part = x[n : n + 1]
            one = view._replace(shape=(1, *view.shape[1:]))
            result, *kept = _channels_second(part, one, gain, bias, eps, None, True)
            y[n] = result[0]
            mean[n], rstd[n] = (cast(Array, value)[0] for value in kept)
            continue
        mean[n] = high + low
        rstd[n] = scale
        high, low, scale = (np.repeat(value, repeats) for value in (high, low, scale))
        _kernels.batch_norm.batch_norm_forward(
            sample, high, low, scale, gain, bias, target, n_threads
        )
    if out is not None and not direct:
        out[...] = y
        y = out
    return (y, mean, rstd) if statistics else (y, None, None)


def _require_two(view: _Groups, x: Array) -> None:
    if view.shape[2] == 1:
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
    seen, gains, _ = _elements(view, values, gain, None)
    dgain, dbias = np.empty(seen.shape[1]), np.empty(seen.shape[1])
    _kernels.group_norm_backward.group_norm_backward(
        view.flatten(dy), seen, view.groups, gains, mean, rstd, dx, dgain, dbias,
        threads_for(x.size),
    )  # fmt: skip
    with np.errstate(all="ignore"):
        sums = [total.reshape(view.channels, -1).sum(1) for total in (dgain, dbias)]
        dgain, dbias = (total.astype(x.dtype) for total in sums)
    return view.restore(dx, x), None if gain is None else dgain, dbias
