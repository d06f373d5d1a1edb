"""The formulas as a NumPy user writes them.

In float64 they are the oracle; as they are, a contestant; through ``jax.jit``, another. Mean and
variance keep their axes, and gain and bias broadcast against x.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "moments",
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
