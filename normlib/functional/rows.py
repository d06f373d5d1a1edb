"""Arrays as rows of features: the checked path of layer and RMS norm, forward and backward."""

import functools
import math
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib._kernels.buffers import aligned_like
from normlib.arrays import (
    DOUBLE,
    Array,
    Axis,
    as_float,
    as_like,
    check_axes,
    check_eps,
    check_out,
    computing_dtype,
    required_like,
    writable_directly,
)
from normlib.errors import ParameterError
from normlib.functional import half
from normlib.threads import threads_for

__all__ = ["LAST", "Pair", "Rows", "differentiate", "normalize"]

# CPython has one object for each small integer, so `is` finds the usual axis at once, and neither
# -1.0 nor an array. Anything that it misses is checked, and takes the longer way.
LAST = -1

Pair = tuple[Array, Array]


class Rows(NamedTuple):
    """How x is seen as rows of features: the kept axes first, the normalized ones last."""

    order: tuple[int, ...]  # of x's axes
    kept: tuple[int, ...]  # shape of the statistics
    features: tuple[int, ...]  # shape of gain and bias
    trailing: bool  # the normalized axes already are the last ones
    what: str  # the axes, as error messages name them

    @classmethod
    def of(cls, x: Array, axis: Axis) -> "Rows":
        if axis is LAST and x.ndim > 0:
            return _rows(x.shape, (x.ndim - 1,), "axis -1 of x")
        return _rows(x.shape, check_axes(axis, x.ndim), f"axis {axis} of x")

    def flatten(self, x: Array) -> Array:
        """x as a C-contiguous (rows, features), copied only if it must be."""
        ordered = x if self.trailing else x.transpose(self.order)
        return np.ascontiguousarray(ordered).reshape(-1, math.prod(self.features))

    def restore(self, rows: Array, out: Array | None = None) -> Array:
        """Rows in the axes and shape of x, written to out if given."""
        y: Array = rows.reshape(self.kept + self.features)
        if not self.trailing:
            y = y.transpose(np.argsort(self.order))
        if out is None:
            return np.ascontiguousarray(y)
        out[...] = y
        return out


@functools.lru_cache(maxsize=256)
def _rows(shape: tuple[int, ...], axes: tuple[int, ...], what: str) -> Rows:
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    order = kept + axes
    return Rows(
        order,
        tuple(shape[a] for a in kept),
        tuple(shape[a] for a in axes),
        order == tuple(range(len(shape))),
        what,
    )


def normalize(
    x: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float,
    out: Array | Pair | None,
    *,
    centered: bool,
    statistics: bool,
    residual: ArrayLike | None = None,
    adds: bool = False,
) -> tuple[Array | None, ...]:
    """y, with adds the sum of x and residual, and with statistics mean (if centered) and rstd.

    Layer norm if centered, else RMS norm, which has no bias.
    """
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    view = Rows.of(x, axis)
    added = None
    if adds:
        added = required_like(residual, "residual", x.shape, x.dtype, "x")
    gain = as_like(gain, "gain", view.features, computing_dtype(x.dtype), view.what)
    bias = as_like(bias, "bias", view.features, computing_dtype(x.dtype), view.what)
    outs = _check_outs(out, x, adds)
    names = (("mean",) if centered else ()) + ("rstd",) if statistics else ()
    if x.size == 0:
        ys = [np.empty(x.shape, x.dtype) if one is None else one for one in outs]
        return (*ys, *(np.full(view.kept, np.nan) for _ in names))
    rows = view.flatten(x)
    others = None if added is None else view.flatten(added)
    direct = [
        one is not None
        and view.trailing
        and writable_directly(one, rows, gain, bias)
        and (others is None or writable_directly(one, others))
        for one in outs
    ]
    targets = [
        one.reshape(rows.shape) if one is not None and fits else aligned_like(rows)
        for one, fits in zip(outs, direct, strict=True)
    ]
    kept = {name: np.empty(len(rows)) for name in names}
    mean, rstd = kept.get("mean"), kept.get("rstd")
    y, total = targets[0], targets[1] if adds else None
    n_threads = threads_for(x.size)
    if centered:
        _kernels.layer_norm.layer_norm_forward(
            rows, others, gain, bias, eps, y, total, mean, rstd, n_threads
        )
    else:
        _kernels.rms_norm.rms_norm_forward(rows, others, gain, eps, y, total, rstd, n_threads)
    ys = [
        one if one is not None and fits else view.restore(array, one)
        for array, one, fits in zip(targets, outs, direct, strict=True)
    ]
    return (*ys, *(one.reshape(view.kept) for one in kept.values()))


def _check_outs(out: Array | Pair | None, x: Array, adds: bool) -> list[Array | None]:
    """What was given for each output."""
    if not adds:
        check_out(cast(Array | None, out), x)
        return [cast(Array | None, out)]
    if out is None:
        return [None, None]
    if not isinstance(out, tuple) or len(out) != 2:
        raise ParameterError(
            "out must be a tuple of two arrays, one for y and one for x + residual; got "
            f"{type(out).__name__}"
        )
    for one in out:
        if one is None:
            raise ParameterError("out must be a tuple of two arrays; got None in it")
        check_out(one, x)
    if np.shares_memory(*out):
        raise ParameterError("the two arrays of out must not share memory")
    return list(out)


def differentiate(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike | None,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    axis: Axis,
    dtotal: ArrayLike | None = None,
    *,
    centered: bool,
    name: str = "x",
) -> tuple[Array | None, ...]:
    """dx, to which dtotal is added, dgain, and dbias if centered; name is x's to the caller."""
    x = as_float(x, name, half=True)
    view = Rows.of(x, axis)
    computed = computing_dtype(x.dtype)
    dy = required_like(dy, "dy", x.shape, x.dtype, name)
    means = None
    if centered:
        means = required_like(mean, "mean", view.kept, DOUBLE, "the other axes of x")
    rstd = required_like(rstd, "rstd", view.kept, DOUBLE, "the other axes of x")
    gain = as_like(gain, "gain", view.features, computed, view.what)
    dtotal = as_like(dtotal, "dtotal", x.shape, x.dtype, name)
    dgain = None if gain is None else np.zeros(view.features, computed)
    dbias = np.zeros(view.features, computed)
    dx = np.empty(x.shape, x.dtype)
    if x.size > 0:
        rows = view.flatten(x)
        dx = aligned_like(rows)
        around = None if dtotal is None else view.flatten(dtotal)
        given = view.flatten(dy), rows, gain
        n_threads = threads_for(x.size)
        if centered:
            _kernels.layer_norm_backward.layer_norm_backward(
                *given, means, rstd, around, dx, dgain, dbias, n_threads
            )
        else:
            _kernels.rms_norm_backward.rms_norm_backward(*given, rstd, around, dx, dgain, n_threads)
        dx = view.restore(dx)
    gradients = (dx, dgain, dbias) if centered else (dx, dgain)
    return gradients if computed is x.dtype else cast(Pair, half.rounded(x, gradients))
