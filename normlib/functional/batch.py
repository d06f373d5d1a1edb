"""Batch normalization of arrays: check, view as channels, call a kernel."""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib._kernels.buffers import aligned_like
from normlib.arrays import (
    DOUBLE,
    Array,
    as_dtype,
    as_float,
    check_eps,
    check_mask,
    check_out,
    required_like,
    writable_directly,
)
from normlib.errors import ParameterError, ShapeError
from normlib.functional import half
from normlib.functional.channels import Channels
from normlib.threads import threads_for

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_forward"]


def _normalize_channels(
    x: Array,
    view: Channels,
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
    y = out.reshape(view.shape) if direct and out is not None else aligned_like(values)
    _kernels.batch_norm.batch_norm_forward(values, *statistics, gain, bias, y, threads_for(x.size))
    return out if direct and out is not None else view.restore(y, x, out)


def _rstd(var: Array, eps: float) -> Array:
    rstd = np.empty_like(var)
    negative = _kernels.batch_norm.reciprocal_std(var, rstd, eps)
    if negative >= 0:
        raise ParameterError(f"var must be at least 0; got {var[negative]} for channel {negative}")
    return rstd


def _statistics(sample: Array, eps: float) -> tuple[Array, Array, Array, Array]:
    """mean, what it lacks for being a double, var and rstd of each channel of (outer, C, inner)."""
    outer, channels, inner = sample.shape
    n_threads = threads_for(sample.size)
    return _kernels.batch_moments.batch_moments(sample, outer, channels, inner, eps, n_threads)


# Exponents of two by which channels of doubles are scaled whose 1 / std, or differences, overflow.
_FAINT, _VAST = 600, -4


def _extremes(sample: Array, var: Array, rstd: Array) -> list[tuple[Array, int]]:
    """Channels of finite doubles that are to be normalized once more, and scaled by which power."""
    found: list[tuple[Array, int]] = []
    if sample.dtype != DOUBLE:
        return found
    for unusual, exponent in ((np.isinf(rstd), _FAINT), (np.isinf(var), _VAST)):
        channels = np.flatnonzero(unusual)
        if channels.size == 0:
            continue
        part = sample[:, channels]
        with np.errstate(all="ignore"):
            least, greatest = part.min(axis=(0, 2)), part.max(axis=(0, 2))
            spread = greatest - least
        overflows = np.isinf(spread) & np.isfinite(least) & np.isfinite(greatest)
        channels = channels[(spread > 0) if exponent == _FAINT else overflows]
        if channels.size:
            found.append((channels, exponent))
    return found


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
    x : array of floats, any shape
        float32, float64, or a half type: float16 or bfloat16, computed in float32. Of any library
        whose arrays NumPy can see. Any memory layout and byte order; copied only if it is not
        C-contiguous.
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
        If an array is not of floats, or is out of NumPy's sight.
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
    plain = _kernels.batch_norm.batch_norm_plain(
        x, mean, var, gain, bias, channel_axis, eps, out, threads_for
    )
    if plain is not None:
        return plain
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        y = batch_norm(half.widen(x), mean, var, gain, bias, channel_axis=channel_axis, eps=eps)
        return cast(Array, half.rounded(x, y, out))
    view = Channels.of(x, channel_axis)
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
    if mask is None:
        moments = _kernels.batch_moments.batch_moments
        plain = _kernels.batch_norm.batch_norm_forward_plain(
            x, gain, bias, channel_axis, eps, out, moments, threads_for
        )
        if plain is not None:
            return plain
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        results = batch_norm_forward(
            half.widen(x), gain, bias, channel_axis=channel_axis, eps=eps, mask=mask
        )
        return cast(tuple[Array, Array, Array], half.rounded(x, results, out))
    view = Channels.of(x, channel_axis, last=mask is not None)
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
    extremes = [  # copies, as out may be x
        (channels, np.ldexp(np.take(x, channels, view.axis), exponent))
        for channels, exponent in _extremes(sample, var, rstd)
    ]
    y = _normalize_channels(x, view, values, (mean, rest, rstd), gain, bias, out)
    for channels, scaled in extremes:
        part, _, _ = batch_norm_forward(
            scaled,
            None if gain is None else gain[channels],
            None if bias is None else bias[channels],
            channel_axis=view.axis,
            eps=eps,
            mask=mask,
        )
        y[(slice(None),) * view.axis + (channels,)] = part
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
    if mask is None:
        reciprocal_std = _kernels.batch_norm.reciprocal_std
        plain = _kernels.batch_norm_backward.batch_norm_backward_plain(
            dy, x, mean, var, gain, channel_axis, eps, reciprocal_std, threads_for
        )
        if plain is not None:
            return plain
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        gradients = batch_norm_backward(
            half.widened(dy), half.widen(x), mean, var, gain,
            channel_axis=channel_axis, eps=eps, mask=mask,
        )  # fmt: skip
        return cast(tuple[Array, Array | None, Array], half.rounded(x, gradients))
    view = Channels.of(x, channel_axis, last=mask is not None)
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
    dx = aligned_like(values)

    def run(values: Array) -> None:
        _kernels.batch_norm_backward.batch_norm_backward(
            dvalues, values, mean, rest, rstd, gain, counted, n, dx, dgain, dbias,
            threads_for(x.size),
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
