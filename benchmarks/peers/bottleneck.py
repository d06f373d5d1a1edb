"""bottleneck's mean and variance in the NumPy formula. One thread."""

import bottleneck
import numpy as np

from benchmarks import formulas
from benchmarks.norms import Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run

__all__ = ["Bottleneck"]


def _moments(x: Array, axes: formulas.Axes) -> tuple[Array, Array]:
    axis = axes[0] if isinstance(axes, tuple) else axes
    mean, var = bottleneck.nanmean(x, axis), bottleneck.nanvar(x, axis)
    return np.expand_dims(mean, axis), np.expand_dims(var, axis)


class Bottleneck(Peer):
    """Its reductions take one axis."""

    images = False

    def layer_norm(self, i: Inputs) -> Run:
        return lambda: formulas.layer_norm(i.x, i.gain, i.bias, EPS, _moments)

    layer_norm_out = layer_norm
    call = layer_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        return lambda: formulas.batch_norm_forward(i.x, i.gain, i.bias, EPS, i.axes, _moments)

    batch_norm_forward_out = batch_norm_forward
