"""PyTorch in inference mode: functional calls forward, the native operators backward.

RMS norm, which has none, backward by autograd.

Recurrent networks: its modules; layer-normalized ones, which it lacks, under TorchScript, in two
forms; gradients by autograd.
"""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.norms import HALVES, Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run
from benchmarks.recurrent import RecurrentInputs

__all__ = ["Torch", "TorchScript", "TorchScriptAtOnce"]


def _tensor(array: Array) -> torch.Tensor:
    """A tensor of an array's memory; of bfloat16, too, which PyTorch does not take from NumPy."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class _TorchPeer(Peer):
    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        torch.set_num_threads(n_threads)
        self.mode = torch.inference_mode()
        self.mode.__enter__()  # for the life of the process, which does nothing else


class Torch(_TorchPeer):
    """Always a new output: the operators that take ``out`` compute elsewhere and copy."""

    dtypes = ("float32", "float64", *HALVES)

    def arrays(self, result: Any) -> list[Array]:
        if isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16:
            return [result.view(torch.int16).numpy().view("bfloat16")]
        return super().arrays(result)

    def copy(self, i: Inputs) -> Run:
        x, out = _tensor(i.x), _tensor(i.out)
        return lambda: out.copy_(x)

    def layer_norm(self, i: Inputs) -> Run:
        x, gain, bias = map(_tensor, (i.x, i.gain, i.bias))
        shape = gain.shape
        return lambda: functional.layer_norm(x, shape, gain, bias, EPS)

    layer_norm_out = layer_norm
    call = layer_norm

    def layer_norm_backward(self, i: Inputs) -> Run:
        dy, x, gain, bias = map(_tensor, (i.dy, i.x, i.gain, i.bias))
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
        x, gain = map(_tensor, (i.x, i.gain))
        shape = gain.shape
        return lambda: functional.rms_norm(x, shape, gain, EPS)

    rms_norm_out = rms_norm

    def rms_norm_backward(self, i: Inputs) -> Run:
        # By its formula's parts, of which the graph is kept: the CPU has no operation of its own.
        with torch.inference_mode(False):
            dy, x, gain = map(_tensor, (i.dy, i.x, i.gain))
            inputs = x.requires_grad_(), gain.requires_grad_()
            y = functional.rms_norm(x, gain.shape, gain, EPS)

        def run() -> object:
            with torch.inference_mode(False):
                return torch.autograd.grad(y, inputs, dy, retain_graph=True)

        return run

    def add_layer_norm(self, i: Inputs) -> Run:
        x, residual, gain, bias = map(_tensor, (i.x, i.dy, i.gain, i.bias))
        shape = gain.shape

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return functional.layer_norm(total, shape, gain, bias, EPS), total

        return run

    add_layer_norm_out = add_layer_norm

    def add_rms_norm(self, i: Inputs) -> Run:
        x, residual, gain = map(_tensor, (i.x, i.dy, i.gain))
        shape = gain.shape

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            total = x + residual
            return functional.rms_norm(total, shape, gain, EPS), total

        return run

    def add_layer_norm_backward(self, i: Inputs) -> Run:
        return _and_around(i, self.layer_norm_backward(i))

    def add_rms_norm_backward(self, i: Inputs) -> Run:
        return _and_around(i, self.rms_norm_backward(i))

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

    def group_norm_last(self, i: Inputs) -> Run:
        x, _ = _channels_last(i)
        gain, bias = map(torch.from_numpy, (i.gain, i.bias))
        groups = i.groups
        return lambda: functional.group_norm(x, groups, gain, bias, EPS).movedim(1, -1)

    def group_norm_last_backward(self, i: Inputs) -> Run:
        x, dy = _channels_last(i)
        gain, bias = map(torch.from_numpy, (i.gain, i.bias))
        n, channels, inner = x.shape[0], x.shape[1], x[0, 0].numel()
        groups = i.groups
        _, mean, rstd = torch.native_group_norm(x, gain, bias, n, channels, inner, groups, EPS)
        backward = torch.ops.aten.native_group_norm_backward
        every = [True, True, True]

        def run() -> tuple[torch.Tensor, ...]:
            dx, *others = backward(dy, x, mean, rstd, gain, n, channels, inner, groups, every)
            return dx.movedim(1, -1), *others

        return run

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

    def product(self, i: RecurrentInputs) -> Run:
        a, b = map(torch.from_numpy, i.square)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    def recurrent(self, i: RecurrentInputs) -> Run | None:
        if i.norm != "noop":
            return None
        with torch.inference_mode(i.mode != "train"):
            return _timed_as(i, *_module(i))


class TorchScript(_TorchPeer):
    """Layer-normalized cells, a step at a time, as in PyTorch's own benchmark of a custom LSTM."""

    at_once: ClassVar[bool] = False

    def recurrent(self, i: RecurrentInputs) -> Run | None:
        if i.norm != "layer" or i.cell not in SCRIPTS:
            return None
        with torch.inference_mode(i.mode != "train"):
            parameters = {k: torch.tensor(v) for k, v in i.parameters.items()}
            run = _timed_as(i, _script(SCRIPTS[i.cell], parameters, self.at_once), parameters)
            for _ in range(4):  # those in which it compiles
                run()
        return run


class TorchScriptAtOnce(TorchScript):
    """The inputs of all steps multiplied and normalized together."""

    at_once = True


def _channels_last(i: Inputs) -> Sequence[torch.Tensor]:
    """x and dy in PyTorch's order of axes, and its memory format for channels last."""
    return [torch.from_numpy(a).movedim(-1, 1) for a in i.channels_last()]


def _and_around(i: Inputs, backward: Callable[[], Any]) -> Run:
    """A normalization's gradient, and to dx what came around it added in place."""
    dtotal = _tensor(i.dy)

    def run() -> tuple[torch.Tensor, ...]:
        dx, *others = backward()
        return dx.add_(dtotal), *others

    return run


# ---- recurrent networks --------------------------------------------------------------------------


def _timed_as(
    i: RecurrentInputs, forward: Callable[..., Any], parameters: Mapping[str, torch.Tensor]
) -> Run:
    """The call that the mode asks for, of something that gives y first."""
    x, dy = torch.tensor(i.x), torch.tensor(i.dy)
    if i.mode != "train":
        return lambda: forward(x)
    with_gradient = [tensor.requires_grad_() for tensor in (x, *parameters.values())]

    def train() -> object:
        with torch.inference_mode(False):
            dx, *grads = torch.autograd.grad(forward(x)[0], with_gradient, dy)
        return dx, dict(zip(parameters, grads, strict=True))

    return train


def _module(i: RecurrentInputs) -> tuple[Callable[..., Any], dict[str, torch.Tensor]]:
    """PyTorch's own network, or cell for one step, and its parameters under normlib's names."""
    state_dict = {name: torch.tensor(array) for name, array in i.parameters.items()}
    if i.mode == "step":
        cell = nn.LSTMCell(*i.sizes)
        cell.load_state_dict({k.removesuffix("_l0"): v for k, v in state_dict.items()})
        state = tuple(torch.zeros(2, *i.dy.shape[1:]))

        def step(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h, c = cell(x[0], state)
            return h, h, c

        return step, {}
    module = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[i.cell](*i.sizes)
    module.load_state_dict(state_dict)
    return module, dict(module.named_parameters())


def _script(
    function: FunctionType, parameters: dict[str, torch.Tensor], at_once: bool
) -> Callable[..., Any]:
    # A copy: TorchScript keeps what it compiled of a function, which is specialized for the shapes
    # that came first, and after some shapes runs unfused.
    own = FunctionType(function.__code__, function.__globals__, function.__name__)
    own.__annotations__ = function.__annotations__
    compiled = torch.jit.script(own)
    values = list(parameters.values())
    return lambda x: compiled(x, values, at_once)


# ---- layer-normalized cells, for TorchScript -----------------------------------------------------
#
# With `at_once` the inputs of all steps are multiplied and normalized together. eps is the default,
# 1e-5. The cell's bias is given to layer_norm, which adds it in passing.


def _normalized(
    x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return functional.layer_norm(functional.linear(x, weight), gain.shape, gain, bias)


def _lstm(
    x: torch.Tensor, parameters: list[torch.Tensor], at_once: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    w_ih, w_hh, b_ih, b_hh, g_ih, g_hh, g_c, b_c = parameters
    h = torch.zeros([x.size(1), w_hh.size(1)])
    c = torch.zeros([x.size(1), w_hh.size(1)])
    inputs = _normalized(x, w_ih, g_ih, b_ih) if at_once else x
    outputs: list[torch.Tensor] = []
    for x_t in inputs.unbind(0):
        a_t = x_t if at_once else _normalized(x_t, w_ih, g_ih, b_ih)
        i, f, g, o = (a_t + _normalized(h, w_hh, g_hh, b_hh)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(functional.layer_norm(c, g_c.shape, g_c, b_c))
        outputs.append(h)
    return torch.stack(outputs), h, c


def _normalized_parts(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gain: torch.Tensor,
    gain_n: torch.Tensor,
) -> torch.Tensor:
    """Gates r and z normalized together, n on its own."""
    n = gain.size(0)
    a = functional.linear(x, weight)
    rz = functional.layer_norm(a[..., :n], gain.shape, gain, bias[:n])
    return torch.cat([rz, functional.layer_norm(a[..., n:], gain_n.shape, gain_n, bias[n:])], -1)


def _gru(
    x: torch.Tensor, parameters: list[torch.Tensor], at_once: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    w_ih, w_hh, b_ih, b_hh, g_ih, g_hh, g_in, g_hn = parameters
    h = torch.zeros([x.size(1), w_hh.size(1)])
    inputs = _normalized_parts(x, w_ih, b_ih, g_ih, g_in) if at_once else x
    outputs: list[torch.Tensor] = []
    for x_t in inputs.unbind(0):
        a_t = x_t if at_once else _normalized_parts(x_t, w_ih, b_ih, g_ih, g_in)
        ar, az, an = a_t.chunk(3, 1)
        ur, uz, un = _normalized_parts(h, w_hh, b_hh, g_hh, g_hn).chunk(3, 1)
        z = torch.sigmoid(az + uz)
        n = torch.tanh(an + torch.sigmoid(ar + ur) * un)
        h = n + z * (h - n)
        outputs.append(h)
    return torch.stack(outputs), h


SCRIPTS: dict[str, Any] = {"lstm": _lstm, "gru": _gru}
