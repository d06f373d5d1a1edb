"""Stateless normalization: check, view as rows or channels, call a kernel.

Statistics (mean, var, rstd) come back in float64, whatever the type of x; gains, biases and
gradients have x's type.
"""

import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import (
    Array,
    Axis,
    as_dtype,
    as_float,
    as_like,
    check_axes,
    check_channel_axis,
    check_eps,
    check_mask,
    check_out,
    required_like,
    writable_directly,
)
from normlib.errors import ParameterError, ShapeError
from normlib.threads import threads_for

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
]


# CPython has one object for each small integer, so `is` finds the usual axis at once, and neither
# -1.0 nor an array. Anything that it misses is checked, and takes the longer way.
_LAST = -1


# ---- layer normalization -------------------------------------------------------------------------


class _Rows(NamedTuple):
    """How x is seen as rows of features: the kept axes first, the normalized ones last."""

    order: tuple[int, ...]  # of x's axes
    kept: tuple[int, ...]  # shape of the statistics
    features: tuple[int, ...]  # shape of gain and bias
    trailing: bool  # the normalized axes already are the last ones
    what: str  # the axes, as error messages name them

    @classmethod
    def of(cls, x: Array, axis: Axis) -> "_Rows":
        if axis is _LAST and x.ndim > 0:
            order = tuple(range(x.ndim))
            return cls(order, x.shape[:-1], x.shape[-1:], True, "axis -1 of x")
        axes = check_axes(axis, x.ndim)
        kept = tuple(a for a in range(x.ndim) if a not in axes)
        order = kept + axes
        return cls(
            order,
            tuple(x.shape[a] for a in kept),
            tuple(x.shape[a] for a in axes),
            order == tuple(range(x.ndim)),
            f"axis {axis} of x",
        )

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


def _layer_norm(
    x: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    eps = check_eps(eps)
    x = as_float(x, "x")
    view = _Rows.of(x, axis)
    gain = as_like(gain, "gain", view.features, x.dtype, view.what)
    bias = as_like(bias, "bias", view.features, x.dtype, view.what)
    check_out(out, x)
    if x.size == 0:
        y = np.empty(x.shape, x.dtype) if out is None else out
        nothing = np.full(view.kept, np.nan) if statistics else None
        return y, nothing, None if nothing is None else nothing.copy()
    rows = view.flatten(x)
    mean = np.empty(len(rows)) if statistics else None
    rstd = np.empty(len(rows)) if statistics else None
    direct = view.trailing and out is not None and writable_directly(out, rows, gain, bias)
    y_rows = out.reshape(rows.shape) if direct and out is not None else np.empty_like(rows)
    _kernels.layer_norm.layer_norm_forward(
        rows, gain, bias, eps, y_rows, mean, rstd, threads_for(x.size)
    )
    y = out if direct and out is not None else view.restore(y_rows, out)
    if mean is None or rstd is None:
        return y, None, None
    return y, mean.reshape(view.kept), rstd.reshape(view.kept)


def layer_norm(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""Layer normalization: each case by the mean and variance of its own features.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot g + b, \quad
        \mu = \frac{1}{F} \sum_i x_i, \quad \sigma^2 = \frac{1}{F} \sum_i (x_i - \mu)^2

    Parameters
    ----------
    x : array of float32 or float64, any shape
        Any memory layout and byte order; copied only if it is not C-contiguous.
    gain, bias : array, optional
        With x's sizes at the normalized axes, in x's order; cast to x's type.
    axis : int or tuple of int
        The axes to normalize over, those of the features.
    eps : float
        Added to the variance; finite and at least 0. With 0, a constant row becomes NaN.
    out : array, optional
        Where to put the result: of x's shape and type, in either byte order. It may be `x` itself,
        or overlap any input.

    Returns
    -------
    y : array of x's shape and type
        `out` if given. A row that holds NaN or Inf becomes NaN, and no other row does.

    Raises
    ------
    DTypeError
        If an array is neither float32 nor float64.
    ShapeError
        If the shape of gain, bias or out does not fit, or an axis does not exist.
    ParameterError
        If eps is negative or not finite, or out is read-only or has elements that share memory.

    References
    ----------
    Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.layer_norm(np.array([[1.0, 2.0, 3.0]]), eps=0).round(3)
    array([[-1.225,  0.   ,  1.225]])
    """
    if axis is _LAST:
        y = _kernels.layer_norm.layer_norm_plain(x, gain, bias, eps, out, threads_for)
        if y is not None:
            return y
    return _layer_norm(x, gain, bias, axis, eps, out, statistics=False)[0]


def layer_norm_forward(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`layer_norm`, and the statistics that `layer_norm_backward` needs.

    Parameters and errors are those of `layer_norm`; so are the bits of `y`.

    Returns
    -------
    y : array of x's shape and type
    mean, rstd : arrays of float64
        Mean and 1 / sqrt(variance + eps), with the shape of the axes that are not normalized.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, mean, rstd = normlib.layer_norm_forward(np.array([[1.0, 2.0, 3.0]]), eps=0)
    >>> mean, rstd
    (array([2.]), array([1.22474487]))
    """
    results = _layer_norm(x, gain, bias, axis, eps, out, statistics=True)
    return cast(tuple[Array, Array, Array], results)


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> tuple[Array, Array | None, Array]:
    r"""Gradients of a loss through `layer_norm`.

    With :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}` and :math:`d = dy \odot g`,

    .. math:: dx = \frac{d - \langle d \rangle - \hat x \langle d \odot \hat x \rangle}
        {\sqrt{\sigma^2 + \epsilon}}, \quad
        dg = \sum dy \odot \hat x, \quad db = \sum dy

    where the brackets are means over the features, and the sums run over the cases.

    Parameters
    ----------
    dy : array of x's shape
        Gradient of the loss by `y`; cast to x's type.
    x, gain : arrays
        As they were given to `layer_norm_forward`.
    mean, rstd : arrays
        As it returned them.
    axis : int or tuple of int
        As given to it.

    Returns
    -------
    dx : array of x's shape and type
    dgain : array of gain's shape and x's type, or None where gain was None
    dbias : array of that shape and x's type

    Raises
    ------
    DTypeError, ShapeError
        If an array is of another type, or its shape does not fit x.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0, 2.0, 3.0]])
    >>> y, mean, rstd = normlib.layer_norm_forward(x)
    >>> dx, dgain, dbias = normlib.layer_norm_backward(np.array([[1.0, 1.0, 1.0]]), x, mean, rstd)
    >>> dx, dbias
    (array([[0., 0., 0.]]), array([1., 1., 1.]))
    """
    x = as_float(x, "x")
    view = _Rows.of(x, axis)
    dy = required_like(dy, "dy", x.shape, x.dtype, "x")
    mean = required_like(mean, "mean", view.kept, np.dtype(float), "the other axes of x")
    rstd = required_like(rstd, "rstd", view.kept, np.dtype(float), "the other axes of x")
    gain = as_like(gain, "gain", view.features, x.dtype, view.what)
    dgain = None if gain is None else np.zeros(view.features, x.dtype)
    dbias = np.zeros(view.features, x.dtype)
    if x.size == 0:
        return np.empty(x.shape, x.dtype), dgain, dbias
    rows = view.flatten(x)
    dx = np.empty_like(rows)
    partial = np.empty(_kernels.layer_norm_backward.scratch_shape(*rows.shape))
    _kernels.layer_norm_backward.layer_norm_backward(
        view.flatten(dy), rows, gain, mean, rstd, dx, dgain, dbias, partial, threads_for(x.size)
    )
    return view.restore(dx), dgain, dbias


# ---- batch normalization -------------------------------------------------------------------------


class _Channels(NamedTuple):
    """How x is seen as (outer, C, inner); with a mask, channels last as (rows, C, 1)."""

    axis: int
    n_channels: int
    last: bool  # x is seen with its channel axis moved to the end
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, x: Array, channel_axis: int, *, last: bool = False) -> "_Channels":
        axis = check_channel_axis(channel_axis, x.ndim)
        n = x.shape[axis]
        if n == 1 and not last:
            return cls(axis, 1, False, (1, 1, x.size))
        if last:
            return cls(axis, n, True, (math.prod(x.shape[:axis] + x.shape[axis + 1 :]), n, 1))
        return cls(axis, n, False, (math.prod(x.shape[:axis]), n, math.prod(x.shape[axis + 1 :])))

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
        what = f"channel axis {self.axis} of x"
        return as_like(value, name, (self.n_channels,), dtype, what)

    def statistic(self, value: ArrayLike, name: str) -> Array:
        what = f"channel axis {self.axis} of x"
        return required_like(value, name, (self.n_channels,), np.dtype(float), what)


def _normalize_channels(
    x: Array,
    view: _Channels,
    values: Array,
    statistics: tuple[Array, Array | None, Array],
    gain: Array | None,
    bias: Array | None,
    out: Array | None,
) -> Array:
    """Normalize values, the view of x, by statistics (mean, its rest or None, rstd)."""
    direct = (
        not view.last
        and out is not None
        and writable_directly(out, values, gain, bias, *statistics)
    )
    y = out.reshape(view.shape) if direct and out is not None else np.empty_like(values)
    factors = np.empty((3, view.n_channels), x.dtype)
    doubles = np.empty(view.n_channels + 1, np.intp)
    _kernels.batch_norm.batch_norm_forward(
        values, *statistics, gain, bias, factors, doubles, y, threads_for(x.size)
    )
    return out if direct and out is not None else view.restore(y, x, out)


def _rstd(var: Array, eps: float) -> Array:
    rstd = np.empty_like(var)
    negative = _kernels.batch_norm.reciprocal_std(var, rstd, eps)
    if negative >= 0:
        raise ParameterError(f"var must be at least 0; got {var[negative]} for channel {negative}")
    return rstd


def _statistics(sample: Array, eps: float) -> tuple[Array, Array, Array, Array]:
    """mean, what it lacks for being a double, var and rstd of each channel of (outer, C, inner)."""
    mean, rest, var, rstd = (np.empty(sample.shape[1]) for _ in range(4))
    scratch = np.empty(_kernels.batch_moments.scratch_shape(*sample.shape))
    _kernels.batch_moments.batch_moments(
        sample, scratch, mean, rest, var, rstd, eps, threads_for(sample.size)
    )
    return mean, rest, var, rstd


def batch_norm(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""Batch normalization at inference: each channel by statistics that are given.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} g_c + b_c

    Parameters
    ----------
    x : array of float32 or float64, any shape
        Any memory layout and byte order; copied only if it is not C-contiguous.
    mean, var : array (C,)
        Taken as float64.
    gain, bias : array (C,), optional
        Cast to x's type.
    channel_axis : int
        Where the C channels are: -1 for (N, C), 1 for (N, C, height, width).
    eps : float
        Added to the variance; finite and at least 0.
    out : array, optional
        Where to put the result: of x's shape and type, in either byte order. It may be `x` itself,
        or overlap any input.

    Returns
    -------
    y : array of x's shape and type

    Raises
    ------
    DTypeError
        If an array is neither float32 nor float64.
    ShapeError
        If the shape of an argument does not fit, or the axis does not exist.
    ParameterError
        If eps or a variance is negative, eps is not finite, or out is read-only or has elements
        that share memory.

    References
    ----------
    Ioffe, Szegedy, "Batch Normalization", arXiv 1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.batch_norm(np.array([[1.0, 5.0]]), mean=[0.0, 4.0], var=[1.0, 4.0], eps=0)
    array([[1. , 0.5]])
    """
    eps = check_eps(eps)
    x = as_float(x, "x")
    view = _Channels.of(x, channel_axis)
    mean = view.statistic(mean, "mean")
    rstd = _rstd(view.statistic(var, "var"), eps)
    gain = view.parameter(gain, "gain", x.dtype)
    bias = view.parameter(bias, "bias", x.dtype)
    check_out(out, x)
    if x.size == 0:
        return np.empty(x.shape, x.dtype) if out is None else out
    return _normalize_channels(x, view, view.flatten(x), (mean, None, rstd), gain, bias, out)


def _require_two(n: int, what: str) -> None:
    if n < 2:
        raise ShapeError(
            f"batch statistics need at least two values per channel; got {n} {what}. "
            "Use a larger batch, or batch_norm() with running statistics"
        )


def batch_norm_forward(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    r"""Batch normalization in training: each channel by its own statistics over the batch.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} g_c + b_c

    with the mean and the biased variance over all axes but that of the channels.

    Parameters
    ----------
    x, gain, bias, channel_axis, eps, out
        As for `batch_norm`.
    mask : boolean array, optional
        x's shape without the channel axis. Where it is False, values do not enter the statistics,
        and are normalized by them all the same.

    Returns
    -------
    y : array of x's shape and type
    mean, var : arrays (C,) of float64
        The variance is biased: the sum of squares is divided by the count itself.

    Raises
    ------
    DTypeError, ParameterError
        As for `batch_norm`; DTypeError also if mask is not boolean.
    ShapeError
        As for `batch_norm`; also if fewer than two values per channel are left.

    Notes
    -----
    The variance of float64 values beyond about 1e154 overflows. `y` is right all the same, but what
    is made from the variance is not: with Inf, `batch_norm_backward` returns a `dx` of zeros, and
    `batch_norm` the bias alone. `layer_norm`, which returns `rstd`, has no such limit.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, mean, var = normlib.batch_norm_forward(np.array([[1.0, 5.0], [3.0, 5.0]]), eps=1e-9)
    >>> mean, var
    (array([2., 5.]), array([1., 0.]))
    """
    eps = check_eps(eps)
    x = as_float(x, "x")
    view = _Channels.of(x, channel_axis, last=mask is not None)
    gain = view.parameter(gain, "gain", x.dtype)
    bias = view.parameter(bias, "bias", x.dtype)
    counted = check_mask(mask, x.shape[: view.axis] + x.shape[view.axis + 1 :])
    check_out(out, x)
    if counted is None:
        _require_two(view.values, f"in x of shape {x.shape}")
    else:
        _require_two(int(counted.sum()), "under the mask")
    if x.size == 0:  # no channels
        return np.empty(x.shape, x.dtype) if out is None else out, np.empty(0), np.empty(0)
    values = view.flatten(x)
    sample = values if counted is None else values[counted.ravel()]
    mean, rest, var, rstd = _statistics(sample, eps)
    y = _normalize_channels(x, view, values, (mean, rest, rstd), gain, bias, out)
    return y, mean, var


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Array | None, Array]:
    r"""Gradients of a loss through `batch_norm_forward`, statistics included.

    With :math:`\hat x = (x - \mu_c) / \sqrt{\sigma_c^2 + \epsilon}`,

    .. math:: dg_c = \sum dy \, \hat x, \quad db_c = \sum dy, \quad
        dx = \frac{g_c}{\sqrt{\sigma_c^2 + \epsilon}}
        \left( dy - \frac{db_c + \hat x \, dg_c}{n} \right)

    where n values made the statistics; a value that the mask left out has only the first term.

    Parameters
    ----------
    dy : array of x's shape
        Gradient of the loss by `y`; cast to x's type.
    x, gain, channel_axis, eps, mask
        As they were given to `batch_norm_forward`. Where mask is False and dy is 0 in every
        channel, as in padding, x has no effect and may even be NaN; dx is 0 there.
    mean, var : arrays (C,)
        As it returned them.

    Returns
    -------
    dx : array of x's shape and type
    dgain : array (C,) of x's type, or None where gain was None
    dbias : array (C,) of x's type

    Raises
    ------
    DTypeError, ShapeError, ParameterError
        As for `batch_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0], [3.0]])
    >>> y, mean, var = normlib.batch_norm_forward(x)
    >>> dx, dgain, dbias = normlib.batch_norm_backward(np.array([[1.0], [1.0]]), x, mean, var)
    >>> dx.ravel(), dbias
    (array([0., 0.]), array([2.]))
    """
    eps = check_eps(eps)
    x = as_float(x, "x")
    view = _Channels.of(x, channel_axis, last=mask is not None)
    dy = required_like(dy, "dy", x.shape, x.dtype, "x")
    mean = view.statistic(mean, "mean")
    rstd = _rstd(view.statistic(var, "var"), eps)
    gain = view.parameter(gain, "gain", x.dtype)
    counted = check_mask(mask, x.shape[: view.axis] + x.shape[view.axis + 1 :])
    n = view.values if counted is None else int(counted.sum())
    _require_two(n, f"in x of shape {x.shape}" if counted is None else "under the mask")
    dgain = None if gain is None else np.zeros(view.n_channels, x.dtype)
    dbias = np.zeros(view.n_channels, x.dtype)
    if x.size == 0:
        return np.empty(x.shape, x.dtype), dgain, dbias
    values, dvalues = view.flatten(x), view.flatten(dy)
    rest = None
    if x.dtype == np.float64:
        # Where the mean dwarfs the spread, a double has no room for what the deviations need.
        sample = values if counted is None else values[counted.ravel()]
        same_mean, rest, _, _ = _statistics(sample, eps)
        rest[same_mean != mean] = 0
    dx = np.empty_like(values)
    factors = np.empty((7, view.n_channels), x.dtype)
    doubles = np.empty(view.n_channels + 1, np.intp)
    scratch = np.empty(_kernels.batch_moments.scratch_shape(*values.shape))

    def run(values: Array) -> None:
        _kernels.batch_norm_backward.batch_norm_backward(
            dvalues, values, mean, rest, rstd, gain, counted, n, factors, doubles, scratch,
            dx, dgain, dbias, threads_for(x.size),
        )  # fmt: skip

    run(values)
    # A NaN in the padding, times its dy of 0, has spread by the sums to every row that counts.
    if counted is not None and not np.isfinite(dx[np.argmax(counted)]).all():
        padding = np.flatnonzero(~counted)
        padding = padding[~dvalues[padding].any(axis=(1, 2))]
        if padding.size:
            values = values.copy()
            values[padding, :, 0] = as_dtype(mean, x.dtype)
            run(values)
            dx[padding] = 0
    return view.restore(dx, x), dgain, dbias
