"""PyTorch in inference mode: functional calls forward, the native operators backward."""

import torch
from torch.nn import functional

from benchmarks.cases import EPS, Inputs
from benchmarks.peers.base import Peer, Run

__all__ = ["Torch"]


class Torch(Peer):
    """Always a new output: the operators that take ``out`` compute elsewhere and copy."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        torch.set_num_threads(n_threads)
        self.mode = torch.inference_mode()
        self.mode.__enter__()  # for the life of the process, which does nothing else

    def copy(self, i: Inputs) -> Run:
        x, out = torch.from_numpy(i.x), torch.from_numpy(i.out)
        return lambda: out.copy_(x)

    def layer_norm(self, i: Inputs) -> Run:
        x, gain, bias = map(torch.from_numpy, (i.x, i.gain, i.bias))
        shape = gain.shape
        return lambda: functional.layer_norm(x, shape, gain, bias, EPS)

    layer_norm_out = layer_norm
    call = layer_norm

    def layer_norm_backward(self, i: Inputs) -> Run:
        dy, x, gain, bias = map(torch.from_numpy, (i.dy, i.x, i.gain, i.bias))
        shape = gain.shape
        _, mean, rstd = torch.native_layer_norm(x, shape, gain, bias, EPS)
        backward = torch.ops.aten.native_layer_norm_backward
        every = [True, True, True]
        return lambda: backward(dy, x, shape, mean, rstd, gain, bias, every)

    def batch_norm(self, i: Inputs) -> Run:
        x, mean, var, gain, bias = map(torch.from_numpy, (i.x, i.mean, i.var, i.gain, i.bias))
        return lambda: functional.batch_norm(x, mean, var, gain, bias, False, 0.1, EPS)

    batch_norm_out = batch_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        x, gain, bias = map(torch.from_numpy, (i.x, i.gain, i.bias))
        forward = torch.native_batch_norm
        return lambda: forward(x, gain, bias, None, None, True, 0.1, EPS)[:1]

    batch_norm_forward_out = batch_norm_forward

    def batch_norm_backward(self, i: Inputs) -> Run:
        dy, x, gain, bias = map(torch.from_numpy, (i.dy, i.x, i.gain, i.bias))
        _, mean, rstd = torch.native_batch_norm(x, gain, bias, None, None, True, 0.1, EPS)
        backward = torch.ops.aten.native_batch_norm_backward
        every = [True, True, True]
        return lambda: backward(dy, x, gain, None, None, mean, rstd, True, EPS, every)

    def rms_norm(self, i: Inputs) -> Run:
        x, gain = map(torch.from_numpy, (i.x, i.gain))
        shape = gain.shape
        return lambda: functional.rms_norm(x, shape, gain, EPS)

    rms_norm_out = rms_norm

    def add_layer_norm(self, i: Inputs) -> Run:
        x, residual, gain, bias = map(torch.from_numpy, (i.x, i.dy, i.gain, i.bias))
        shape = gain.shape

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return functional.layer_norm(total, shape, gain, bias, EPS), total

        return run

    add_layer_norm_out = add_layer_norm

    def add_rms_norm(self, i: Inputs) -> Run:
        x, residual, gain = map(torch.from_numpy, (i.x, i.dy, i.gain))
        shape = gain.shape

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return functional.rms_norm(total, shape, gain, EPS), total

        return run

    def group_norm(self, i: Inputs) -> Run:
        x, gain, bias = map(torch.from_numpy, (i.x, i.gain, i.bias))
        groups = i.groups
        return lambda: functional.group_norm(x, groups, gain, bias, EPS)

    group_norm_out = group_norm

    def group_norm_backward(self, i: Inputs) -> Run:
        dy, x, gain, bias = map(torch.from_numpy, (i.dy, i.x, i.gain, i.bias))
        n, channels, inner = x.shape[0], x.shape[1], x[0, 0].numel()
        groups = i.groups
        _, mean, rstd = torch.native_group_norm(x, gain, bias, n, channels, inner, groups, EPS)
        backward = torch.ops.aten.native_group_norm_backward
        every = [True, True, True]
        return lambda: backward(dy, x, mean, rstd, gain, n, channels, inner, groups, every)

    def instance_norm(self, i: Inputs) -> Run:
        x, gain, bias = map(torch.from_numpy, (i.x, i.gain, i.bias))
        return lambda: functional.instance_norm(x, weight=gain, bias=bias, eps=EPS)

    def instance_norm_backward(self, i: Inputs) -> Run:
        # As its gradient goes: a batch norm of N * C channels, whose gradients of gains are summed.
        n, channels = i.x.shape[:2]
        dy, x = (torch.from_numpy(a).view(1, n * channels, *a.shape[2:]) for a in (i.dy, i.x))
        gain = torch.from_numpy(i.gain).repeat(n)
        forward, backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
        _, mean, rstd = forward(x, gain, None, None, None, True, 0.1, EPS)
        every = [True, True, True]

        def run() -> tuple[torch.Tensor, ...]:
            dx, dgain, dbias = backward(dy, x, gain, None, None, mean, rstd, True, EPS, every)
            return dx, dgain.view(n, channels).sum(0), dbias.view(n, channels).sum(0)

        return run
