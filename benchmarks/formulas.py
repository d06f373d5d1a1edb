"""The formulas as a NumPy user writes them.

In float64 they are the oracle; as they are, a contestant; through ``jax.jit``, another. Mean and
variance keep their axes, and gain and bias broadcast against x.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "group_norm",
    "group_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "moments",
    "rms",
    "rms_norm",
    "rms_norm_backward",
]

AnyArray: TypeAlias = Any  # of NumPy or JAX
Axes: TypeAlias = int | tuple[int, ...]
MomentsFunction: TypeAlias = Callable[[AnyArray, Axes], tuple[AnyArray, AnyArray]]


def moments(x: AnyArray, axes: Axes) -> tuple[AnyArray, AnyArray]:
    """Mean and biased variance along axes, which stay."""
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def layer_norm(
    x: AnyArray,
    gain: AnyArray,
    bias: AnyArray,
    eps: float,
    moments: MomentsFunction = moments,
) -> AnyArray:
    mean, var = moments(x, -1)
    return (x - mean) * (var + eps) ** -0.5 * gain + bias


def layer_norm_backward(
    dy: AnyArray, x: AnyArray, mean: AnyArray, rstd: AnyArray, gain: AnyArray
) -> tuple[AnyArray, AnyArray, AnyArray]:
    xhat = (x - mean) * rstd
    g = dy * gain
    mean_g, mean_gx = g.mean(-1, keepdims=True), (g * xhat).mean(-1, keepdims=True)
    return rstd * (g - mean_g - xhat * mean_gx), (dy * xhat).sum(0), dy.sum(0)


def batch_norm(
    x: AnyArray, mean: AnyArray, var: AnyArray, gain: AnyArray, bias: AnyArray, eps: float
) -> AnyArray:
    return (x - mean) * (gain * (var + eps) ** -0.5) + bias


def batch_norm_forward(
    x: AnyArray,
    gain: AnyArray,
    bias: AnyArray,
    eps: float,
    axes: Axes,
    moments: MomentsFunction = moments,
) -> AnyArray:
    mean, var = moments(x, axes)
    return batch_norm(x, mean, var, gain, bias, eps)


def batch_norm_backward(
    dy: AnyArray, x: AnyArray, mean: AnyArray, rstd: AnyArray, gain: AnyArray, axes: Axes
) -> tuple[AnyArray, AnyArray, AnyArray]:
    xhat = (x - mean) * rstd
    mean_dy = dy.mean(axes, keepdims=True)
    mean_dyx = (dy * xhat).mean(axes, keepdims=True)
    n = x.size // mean_dy.size
    return gain * rstd * (dy - mean_dy - xhat * mean_dyx), n * mean_dyx, n * mean_dy


def rms(x: AnyArray, eps: float) -> AnyArray:
    """1 / sqrt(mean square + eps) of each row."""
    return ((x * x).mean(-1, keepdims=True) + eps) ** -0.5


def rms_norm(x: AnyArray, gain: AnyArray, eps: float) -> AnyArray:
    return x * rms(x, eps) * gain


def rms_norm_backward(
    dy: AnyArray, x: AnyArray, rstd: AnyArray, gain: AnyArray
) -> tuple[AnyArray, AnyArray]:
    xhat = x * rstd
    g = dy * gain
    return rstd * (g - xhat * (g * xhat).mean(-1, keepdims=True)), (dy * xhat).sum(0)


def add_layer_norm(
    x: AnyArray, residual: AnyArray, gain: AnyArray, bias: AnyArray, eps: float
) -> tuple[AnyArray, AnyArray]:
    total = x + residual
    return layer_norm(total, gain, bias, eps), total


def add_rms_norm(
    x: AnyArray, residual: AnyArray, gain: AnyArray, eps: float
) -> tuple[AnyArray, AnyArray]:
    total = x + residual
    return rms_norm(total, gain, eps), total


def group_norm(x: AnyArray, groups: int, gain: AnyArray, bias: AnyArray, eps: float) -> AnyArray:
    """Gain and bias broadcast against x."""
    rows = x.reshape(x.shape[0], groups, -1)
    mean, var = moments(rows, -1)
    return ((rows - mean) * (var + eps) ** -0.5).reshape(x.shape) * gain + bias


def group_norm_backward(
    dy: AnyArray, x: AnyArray, groups: int, gain: AnyArray, eps: float
) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Gradients, statistics computed anew."""
    rows = x.reshape(x.shape[0], groups, -1)
    mean, var = moments(rows, -1)
    rstd = (var + eps) ** -0.5
    xhat = (rows - mean) * rstd
    g = (dy * gain).reshape(rows.shape)
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    axes = (0, *range(2, x.ndim))
    return dx.reshape(x.shape), (dy * xhat.reshape(x.shape)).sum(axes), dy.sum(axes)
