"""NumPy: the formulas as they are. One thread."""

import numpy as np

from benchmarks import formulas
from benchmarks.norms import Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run
from benchmarks.recurrent import RecurrentInputs

__all__ = ["NumPy"]


class NumPy(Peer):
    """A new output for each step of a formula, unless ``out`` is given."""

    moments = staticmethod(formulas.moments)

    def copy(self, i: Inputs) -> Run:
        return lambda: np.copyto(i.out, i.x)

    def product(self, i: RecurrentInputs) -> Run:
        a, b = i.square
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)

    def layer_norm(self, i: Inputs) -> Run:
        return lambda: formulas.layer_norm(i.x, i.gain, i.bias, EPS, self.moments)

    call = layer_norm

    def layer_norm_out(self, i: Inputs) -> Run:
        def run() -> Array:
            mean, var = self.moments(i.x, -1)
            y = np.subtract(i.x, mean, out=i.out)
            y *= (var + EPS) ** -0.5
            y *= i.gain
            y += i.bias
            return y

        return run

    def layer_norm_backward(self, i: Inputs) -> Run:
        mean, var = self.moments(i.x, -1)
        rstd = (var + EPS) ** -0.5
        return lambda: formulas.layer_norm_backward(i.dy, i.x, mean, rstd, i.gain)

    def batch_norm(self, i: Inputs) -> Run:
        mean, var, gain, bias = map(i.by_channel, (i.mean, i.var, i.gain, i.bias))
        return lambda: formulas.batch_norm(i.x, mean, var, gain, bias, EPS)

    batch_norm_out = batch_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
        return lambda: formulas.batch_norm_forward(i.x, gain, bias, EPS, i.axes, self.moments)

    batch_norm_forward_out = batch_norm_forward

    def batch_norm_backward(self, i: Inputs) -> Run:
        mean, var = formulas.moments(i.x, i.axes)
        rstd = (var + EPS) ** -0.5
        gain = i.by_channel(i.gain)
        return lambda: formulas.batch_norm_backward(i.dy, i.x, mean, rstd, gain, i.axes)

    def rms_norm(self, i: Inputs) -> Run:
        return lambda: formulas.rms_norm(i.x, i.gain, EPS)

    rms_norm_out = rms_norm

    def rms_norm_backward(self, i: Inputs) -> Run:
        rstd = formulas.rms(i.x, EPS)
        return lambda: formulas.rms_norm_backward(i.dy, i.x, rstd, i.gain)

    def add_layer_norm(self, i: Inputs) -> Run:
        return lambda: formulas.add_layer_norm(i.x, i.dy, i.gain, i.bias, EPS)

    add_layer_norm_out = add_layer_norm

    def add_rms_norm(self, i: Inputs) -> Run:
        return lambda: formulas.add_rms_norm(i.x, i.dy, i.gain, EPS)

    def group_norm(self, i: Inputs) -> Run:
        gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
        return lambda: formulas.group_norm(i.x, i.groups, gain, bias, EPS)

    group_norm_out = group_norm

    def instance_norm(self, i: Inputs) -> Run:
        gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
        return lambda: formulas.group_norm(i.x, i.x.shape[1], gain, bias, EPS)
