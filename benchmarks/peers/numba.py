"""numba: the plain loops, in parallel over rows or channels, with ``fastmath``."""

import numba
import numpy as np
from numba import prange

from benchmarks import formulas
from benchmarks.norms import Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run

__all__ = ["Numba"]

_jit = numba.njit(parallel=True, fastmath=True, cache=True)


@_jit
def _layer_norm(x, gain, bias, eps, y):
    number = x.dtype.type  # or Numba goes over to float64
    zero, one, n = number(0), number(1), number(x.shape[1])
    for r in prange(x.shape[0]):
        total = zero
        for f in range(x.shape[1]):
            total += x[r, f]
        mean = total / n
        total = zero
        for f in range(x.shape[1]):
            total += (x[r, f] - mean) ** 2
        scale = one / np.sqrt(total / n + eps)
        for f in range(x.shape[1]):
            y[r, f] = (x[r, f] - mean) * scale * gain[f] + bias[f]
    return y


@_jit
def _layer_norm_backward(dy, x, mean, rstd, gain, n_parts):
    n_rows, n_features = x.shape
    zero, n = x.dtype.type(0), x.dtype.type(n_features)
    dx = np.empty_like(x)
    sums = np.zeros((n_parts, 2, n_features), x.dtype)
    for part in prange(n_parts):
        for r in range(n_rows * part // n_parts, n_rows * (part + 1) // n_parts):
            sum_g = zero
            sum_gx = zero
            for f in range(n_features):
                g = dy[r, f] * gain[f]
                sum_g += g
                sum_gx += g * (x[r, f] - mean[r]) * rstd[r]
            for f in range(n_features):
                xhat = (x[r, f] - mean[r]) * rstd[r]
                dx[r, f] = rstd[r] * (dy[r, f] * gain[f] - sum_g / n - xhat * sum_gx / n)
                sums[part, 0, f] += dy[r, f] * xhat
                sums[part, 1, f] += dy[r, f]
    total = sums.sum(axis=0)
    return dx, total[0], total[1]


@_jit
def _batch_norm(x, mean, var, gain, bias, eps):
    n_samples, n_channels, n_places = x.shape
    scale = gain / np.sqrt(var + eps)
    y = np.empty_like(x)
    for n in prange(n_samples):
        for c in range(n_channels):
            for s in range(n_places):
                y[n, c, s] = (x[n, c, s] - mean[c]) * scale[c] + bias[c]
    return y


@_jit
def _batch_norm_forward(x, gain, bias, eps):
    n_samples, n_channels, n_places = x.shape
    zero, n = x.dtype.type(0), x.dtype.type(n_samples * n_places)
    mean, var, y = np.empty_like(gain), np.empty_like(gain), np.empty_like(x)
    for c in prange(n_channels):
        total = zero
        for i in range(n_samples):
            for s in range(n_places):
                total += x[i, c, s]
        m = total / n
        total = zero
        for i in range(n_samples):
            for s in range(n_places):
                total += (x[i, c, s] - m) ** 2
        mean[c], var[c] = m, total / n
        scale = gain[c] / np.sqrt(total / n + eps)
        for i in range(n_samples):
            for s in range(n_places):
                y[i, c, s] = (x[i, c, s] - m) * scale + bias[c]
    return y, mean, var


@_jit
def _batch_norm_backward(dy, x, mean, rstd, gain):
    n_samples, n_channels, n_places = x.shape
    zero, n = x.dtype.type(0), x.dtype.type(n_samples * n_places)
    dx, dgain, dbias = np.empty_like(x), np.empty_like(gain), np.empty_like(gain)
    for c in prange(n_channels):
        sum_dy = zero
        sum_dyx = zero
        for i in range(n_samples):
            for s in range(n_places):
                sum_dy += dy[i, c, s]
                sum_dyx += dy[i, c, s] * (x[i, c, s] - mean[c]) * rstd[c]
        for i in range(n_samples):
            for s in range(n_places):
                xhat = (x[i, c, s] - mean[c]) * rstd[c]
                dx[i, c, s] = gain[c] * rstd[c] * (dy[i, c, s] - sum_dy / n - xhat * sum_dyx / n)
        dgain[c], dbias[c] = sum_dyx, sum_dy
    return dx, dgain, dbias


def _places(array: Array) -> Array:
    """Rows of features or NCHW, as (samples, channels, places)."""
    return array.reshape(*array.shape[:2], -1)


class Numba(Peer):
    """Features lie apart in memory where loops run along a channel: the plain loop suffers."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        numba.set_num_threads(n_threads)

    def layer_norm(self, i: Inputs) -> Run:
        eps = i.x.dtype.type(EPS)
        return lambda: _layer_norm(i.x, i.gain, i.bias, eps, np.empty_like(i.x))

    call = layer_norm

    def layer_norm_out(self, i: Inputs) -> Run:
        eps = i.x.dtype.type(EPS)
        return lambda: _layer_norm(i.x, i.gain, i.bias, eps, i.out)

    def layer_norm_backward(self, i: Inputs) -> Run:
        mean, var = (array.ravel() for array in formulas.moments(i.x, -1))
        rstd = (var + i.x.dtype.type(EPS)) ** -0.5
        return lambda: _layer_norm_backward(i.dy, i.x, mean, rstd, i.gain, self.n_threads)

    def batch_norm(self, i: Inputs) -> Run:
        x, eps = _places(i.x), i.x.dtype.type(EPS)
        return lambda: _batch_norm(x, i.mean, i.var, i.gain, i.bias, eps)

    batch_norm_out = batch_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        x, eps = _places(i.x), i.x.dtype.type(EPS)
        return lambda: _batch_norm_forward(x, i.gain, i.bias, eps)[:1]

    batch_norm_forward_out = batch_norm_forward

    def batch_norm_backward(self, i: Inputs) -> Run:
        dy, x = _places(i.dy), _places(i.x)
        mean, var = (array.ravel() for array in formulas.moments(i.x, i.axes))
        rstd = (var + i.x.dtype.type(EPS)) ** -0.5
        return lambda: _batch_norm_backward(dy, x, mean, rstd, i.gain)
