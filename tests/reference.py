"""The oracle: the formulas in NumPy, in at least float64, written for clarity alone."""

import numpy as np


def wide(x):
    """x in the widest float there is: a float64 oracle for float32, and a wider one for float64."""
    return np.asarray(x, np.longdouble)


def moments(x, axis):
    """Mean and biased variance; x is shifted first, as even long doubles cancel."""
    x = wide(x)
    first = np.take(x, [0], axis=axis[0])
    for a in axis[1:]:
        first = np.take(first, [0], axis=a)
    with np.errstate(invalid="ignore"):
        d = x - first
        mean = d.mean(axis, keepdims=True)
        return first + mean, ((d - mean) ** 2).mean(axis, keepdims=True), d - mean


def layer_norm(x, gain=None, bias=None, axis=(-1,), eps=1e-5):
    """y, mean, rstd; gain and bias must broadcast against x."""
    mean, var, deviation = moments(x, axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        rstd = 1 / np.sqrt(var + wide(eps))
        y = deviation * rstd
    if gain is not None:
        y = y * wide(gain)
    if bias is not None:
        y = y + wide(bias)
    return y, mean, rstd


def layer_norm_backward(dy, x, gain=None, axis=(-1,), eps=1e-5):
    """dx, and the summands of dgain and of dbias, in x's shape."""
    dy = wide(dy)
    xhat, _, rstd = layer_norm(x, axis=axis, eps=eps)
    d = dy if gain is None else dy * wide(gain)
    mean_d = d.mean(axis, keepdims=True)
    mean_dx = (d * xhat).mean(axis, keepdims=True)
    return rstd * (d - mean_d - xhat * mean_dx), dy * xhat, dy


def rms_norm(x, gain=None, axis=(-1,), eps=1e-5):
    """y and rstd; gain must broadcast against x."""
    x = wide(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        rstd = 1 / np.sqrt((x**2).mean(axis, keepdims=True) + wide(eps))
        y = x * rstd
    return y if gain is None else y * wide(gain), rstd


def rms_norm_backward(dy, x, gain=None, axis=(-1,), eps=1e-5):
    """dx, and the summands of dgain, in x's shape."""
    dy = wide(dy)
    xhat, rstd = rms_norm(x, axis=axis, eps=eps)
    d = dy if gain is None else dy * wide(gain)
    return rstd * (d - xhat * (d * xhat).mean(axis, keepdims=True)), dy * xhat


def group_norm(x, groups, gain=None, bias=None, channel_axis=1, eps=1e-5):
    """y in x's shape; mean and rstd (N, groups)."""
    first = np.moveaxis(np.asarray(x), channel_axis, 1)
    rows = first.reshape(len(first), groups, -1)
    xhat, mean, rstd = layer_norm(rows, eps=eps)
    y = np.moveaxis(xhat.reshape(first.shape), 1, channel_axis)
    if gain is not None:
        y = y * along(gain, x, channel_axis)
    if bias is not None:
        y = y + along(bias, x, channel_axis)
    return y, mean[..., 0], rstd[..., 0]


def group_norm_backward(dy, x, groups, gain=None, channel_axis=1, eps=1e-5):
    """dx, and the summands of dgain and of dbias, in x's shape."""
    d = wide(dy) if gain is None else wide(dy) * along(gain, x, channel_axis)

    def as_rows(a):
        first = np.moveaxis(np.asarray(a), channel_axis, 1)
        return first.reshape(len(first), groups, -1), first.shape

    rows, shape = as_rows(x)
    dx, _, _ = layer_norm_backward(as_rows(d)[0], rows, eps=eps)
    xhat, _, _ = layer_norm(rows, eps=eps)
    dx, xhat = (np.moveaxis(a.reshape(shape), 1, channel_axis) for a in (dx, xhat))
    return dx, wide(dy) * xhat, wide(dy)


def batch_axes(x, channel_axis):
    channel_axis %= np.ndim(x)
    return tuple(a for a in range(np.ndim(x)) if a != channel_axis)


def along(value, x, channel_axis):
    """A (C,) array so that it broadcasts against x."""
    shape = [1] * np.ndim(x)
    shape[channel_axis] = -1
    return wide(value).reshape(shape)


def batch_norm(x, mean, var, gain=None, bias=None, channel_axis=-1, eps=1e-5):
    y = (wide(x) - along(mean, x, channel_axis)) / np.sqrt(along(var, x, channel_axis) + wide(eps))
    if gain is not None:
        y = y * along(gain, x, channel_axis)
    if bias is not None:
        y = y + along(bias, x, channel_axis)
    return y


def masked_moments(x, mask, channel_axis):
    """Mean and variance (C,) of the values that mask leaves."""
    rows = np.moveaxis(np.asarray(x), channel_axis, -1)[mask]
    mean, var, _ = moments(rows, (0,))
    return mean[0], var[0]


def ulps(actual, expected, dtype):
    """Largest error in units of the last place, scaled by max(1, |expected|)."""
    expected = wide(expected)
    scale = np.finfo(dtype).eps * np.maximum(1, np.abs(expected))
    assert actual.dtype == dtype
    assert np.isfinite(actual).all()
    return float(np.max(np.abs(actual - expected) / scale, initial=0))


INPUTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "shifted integers": lambda rng, shape: rng.integers(40000, 40004, shape).astype(float),
    "mean dwarfs spread": lambda rng, shape: 10000 + 0.001 * rng.standard_normal(shape),
    "constant": lambda rng, shape: np.full(shape, 3.3),
    "huge": lambda rng, shape: 1e30 * rng.standard_normal(shape),
    "tiny": lambda rng, shape: 1e-30 * rng.standard_normal(shape),
    "outlier first": lambda rng, shape: np.where(
        np.arange(shape[-1]) == 0, 1e6, rng.standard_normal(shape)
    ),
    "outliers first": lambda rng, shape: (
        np.where(np.arange(shape[-1]) < 16, 1000, 0) + rng.standard_normal(shape)
    ),
}
