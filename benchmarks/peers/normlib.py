"""normlib, through its public API."""

import numpy as np

import normlib
from benchmarks.norms import HALVES, Inputs
from benchmarks.operation import EPS
from benchmarks.peers.base import Peer, Run
from benchmarks.recurrent import RecurrentInputs
from normlib import _kernels

__all__ = ["Normlib"]


class Normlib(Peer):
    """New outputs where an operation's name does not say otherwise."""

    dtypes = ("float32", "float64", *HALVES)

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        normlib.set_num_threads(n_threads)

    def layer_norm(self, i: Inputs) -> Run:
        return lambda: normlib.layer_norm(i.x, i.gain, i.bias, eps=EPS)

    call = layer_norm

    def layer_norm_out(self, i: Inputs) -> Run:
        return lambda: normlib.layer_norm(i.x, i.gain, i.bias, eps=EPS, out=i.out)

    def layer_norm_backward(self, i: Inputs) -> Run:
        _, mean, rstd = normlib.layer_norm_forward(i.x, i.gain, i.bias, eps=EPS)
        return lambda: normlib.layer_norm_backward(i.dy, i.x, mean, rstd, i.gain)

    def batch_norm(self, i: Inputs) -> Run:
        return lambda: normlib.batch_norm(
            i.x, i.mean, i.var, i.gain, i.bias, channel_axis=1, eps=EPS
        )

    def batch_norm_out(self, i: Inputs) -> Run:
        return lambda: normlib.batch_norm(
            i.x, i.mean, i.var, i.gain, i.bias, channel_axis=1, eps=EPS, out=i.out
        )

    def batch_norm_forward_out(self, i: Inputs) -> Run:
        return lambda: normlib.batch_norm_forward(
            i.x, i.gain, i.bias, channel_axis=1, eps=EPS, out=i.out
        )[:1]

    def batch_norm_forward(self, i: Inputs) -> Run:
        return lambda: normlib.batch_norm_forward(i.x, i.gain, i.bias, channel_axis=1, eps=EPS)[:1]

    def batch_norm_backward(self, i: Inputs) -> Run:
        _, mean, var = normlib.batch_norm_forward(i.x, i.gain, i.bias, channel_axis=1, eps=EPS)
        return lambda: normlib.batch_norm_backward(
            i.dy, i.x, mean, var, i.gain, channel_axis=1, eps=EPS
        )

    def rms_norm(self, i: Inputs) -> Run:
        return lambda: normlib.rms_norm(i.x, i.gain, eps=EPS)

    def rms_norm_out(self, i: Inputs) -> Run:
        return lambda: normlib.rms_norm(i.x, i.gain, eps=EPS, out=i.out)

    def rms_norm_backward(self, i: Inputs) -> Run:
        _, rstd = normlib.rms_norm_forward(i.x, i.gain, eps=EPS)
        return lambda: normlib.rms_norm_backward(i.dy, i.x, rstd, i.gain)

    def add_layer_norm(self, i: Inputs) -> Run:
        return lambda: normlib.add_layer_norm(i.x, i.dy, i.gain, i.bias, eps=EPS)

    def add_layer_norm_out(self, i: Inputs) -> Run:
        out = i.out, np.zeros_like(i.out)
        return lambda: normlib.add_layer_norm(i.x, i.dy, i.gain, i.bias, eps=EPS, out=out)

    def add_rms_norm(self, i: Inputs) -> Run:
        return lambda: normlib.add_rms_norm(i.x, i.dy, i.gain, eps=EPS)

    def add_layer_norm_backward(self, i: Inputs) -> Run:
        _, mean, rstd = normlib.layer_norm_forward(i.x, i.gain, i.bias, eps=EPS)
        return lambda: normlib.add_layer_norm_backward(i.dy, i.dy, i.x, mean, rstd, i.gain)

    def add_rms_norm_backward(self, i: Inputs) -> Run:
        _, rstd = normlib.rms_norm_forward(i.x, i.gain, eps=EPS)
        return lambda: normlib.add_rms_norm_backward(i.dy, i.dy, i.x, rstd, i.gain)

    def group_norm(self, i: Inputs) -> Run:
        return lambda: normlib.group_norm(i.x, i.groups, i.gain, i.bias, eps=EPS)

    def group_norm_out(self, i: Inputs) -> Run:
        return lambda: normlib.group_norm(i.x, i.groups, i.gain, i.bias, eps=EPS, out=i.out)

    def group_norm_backward(self, i: Inputs) -> Run:
        _, mean, rstd = normlib.group_norm_forward(i.x, i.groups, eps=EPS)
        return lambda: normlib.group_norm_backward(i.dy, i.x, i.groups, mean, rstd, i.gain)

    def group_norm_last(self, i: Inputs) -> Run:
        x, _ = i.channels_last()
        return lambda: normlib.group_norm(x, i.groups, i.gain, i.bias, channel_axis=-1, eps=EPS)

    def group_norm_last_backward(self, i: Inputs) -> Run:
        x, dy = i.channels_last()
        _, mean, rstd = normlib.group_norm_forward(x, i.groups, channel_axis=-1, eps=EPS)
        backward = normlib.group_norm_backward
        return lambda: backward(dy, x, i.groups, mean, rstd, i.gain, channel_axis=-1)

    def instance_norm(self, i: Inputs) -> Run:
        return lambda: normlib.instance_norm(i.x, i.gain, i.bias, eps=EPS)

    def instance_norm_backward(self, i: Inputs) -> Run:
        _, mean, rstd = normlib.instance_norm_forward(i.x, eps=EPS)
        return lambda: normlib.instance_norm_backward(i.dy, i.x, mean, rstd, i.gain)

    def product(self, i: RecurrentInputs) -> Run:
        a, b = i.square
        packed, out = _kernels.product.pack(b), np.empty_like(a)
        return lambda: _kernels.product.product(a, packed, out, self.n_threads)

    def recurrent(self, i: RecurrentInputs) -> Run:
        rnn = i.model()
        if i.mode == "step":
            state = np.zeros((2, 1, *i.dy.shape[1:]), i.x.dtype)
            return lambda: rnn.step(i.x[0], (state[0], state[1]))
        if i.mode == "infer":
            return lambda: rnn(i.x)

        def train() -> object:
            _, _, cache = rnn.forward(i.x)
            dx, _, grads = rnn.backward(i.dy, cache)
            return dx, grads

        return train
