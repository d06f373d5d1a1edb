"""normlib, through its public API."""

import normlib
from benchmarks.cases import EPS, Inputs
from benchmarks.peers.base import Peer, Run

__all__ = ["Normlib"]


class Normlib(Peer):
    """New outputs where an operation's name does not say otherwise."""

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
