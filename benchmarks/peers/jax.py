"""JAX: the formulas, compiled by ``jax.jit``."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from benchmarks import formulas
from benchmarks.norms import Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run

__all__ = ["Jax"]


class Jax(Peer):
    """Always a new output. Its threads are set where the process is started: see `worker`."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)

    def layer_norm(self, i: Inputs) -> Run:
        return _jit(lambda x, g, b: formulas.layer_norm(x, g, b, EPS), i.x, i.gain, i.bias)

    layer_norm_out = layer_norm
    call = layer_norm

    def layer_norm_backward(self, i: Inputs) -> Run:
        mean, var = formulas.moments(i.x, -1)
        rstd = (var + i.x.dtype.type(EPS)) ** -0.5
        return _jit(formulas.layer_norm_backward, i.dy, i.x, mean, rstd, i.gain)

    def batch_norm(self, i: Inputs) -> Run:
        parameters = map(i.by_channel, (i.mean, i.var, i.gain, i.bias))
        return _jit(lambda x, m, v, g, b: formulas.batch_norm(x, m, v, g, b, EPS), i.x, *parameters)

    batch_norm_out = batch_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        def forward(x: Any, gain: Any, bias: Any) -> Any:
            # Mean and variance are outputs too.
            mean, var = formulas.moments(x, i.axes)
            return formulas.batch_norm(x, mean, var, gain, bias, EPS), mean, var

        run = _jit(forward, i.x, i.by_channel(i.gain), i.by_channel(i.bias))
        return lambda: run()[:1]

    batch_norm_forward_out = batch_norm_forward

    def batch_norm_backward(self, i: Inputs) -> Run:
        mean, var = formulas.moments(i.x, i.axes)
        rstd = (var + i.x.dtype.type(EPS)) ** -0.5

        def backward(dy: Any, x: Any, mean: Any, rstd: Any, gain: Any) -> Any:
            return formulas.batch_norm_backward(dy, x, mean, rstd, gain, i.axes)

        return _jit(backward, i.dy, i.x, mean, rstd, i.by_channel(i.gain))

    def rms_norm(self, i: Inputs) -> Run:
        return _jit(lambda x, g: formulas.rms_norm(x, g, EPS), i.x, i.gain)

    rms_norm_out = rms_norm

    def rms_norm_backward(self, i: Inputs) -> Run:
        rstd = formulas.rms(i.x, i.x.dtype.type(EPS))
        return _jit(formulas.rms_norm_backward, i.dy, i.x, rstd, i.gain)

    def add_layer_norm(self, i: Inputs) -> Run:
        def add(x: Any, residual: Any, gain: Any, bias: Any) -> Any:
            return formulas.add_layer_norm(x, residual, gain, bias, EPS)

        return _jit(add, i.x, i.dy, i.gain, i.bias)

    add_layer_norm_out = add_layer_norm

    def add_rms_norm(self, i: Inputs) -> Run:
        return _jit(lambda x, r, g: formulas.add_rms_norm(x, r, g, EPS), i.x, i.dy, i.gain)

    def group_norm(self, i: Inputs) -> Run:
        return self._by_groups(i, i.groups)

    group_norm_out = group_norm

    def instance_norm(self, i: Inputs) -> Run:
        return self._by_groups(i, i.x.shape[1])

    def _by_groups(self, i: Inputs, groups: int) -> Run:
        gain, bias = i.by_channel(i.gain), i.by_channel(i.bias)
        return _jit(lambda x, g, b: formulas.group_norm(x, groups, g, b, EPS), i.x, gain, bias)


def _jit(function: Callable[..., Any], *arrays: Array) -> Callable[[], Any]:
    compiled = jax.jit(function)
    values = [jnp.asarray(array) for array in arrays]
    return lambda: jax.block_until_ready(compiled(*values))
