"""Networks of the tests of the fused loop, and comparisons of bits."""

import itertools
import sys

import numpy as np
import pytest

import normlib
from networks import CELLS, as_list
from normlib import _kernels

STEPS = 3


class PerStep(normlib.LayerNorm):
    """A layer norm with a fixed gain of its own at each of the first steps."""

    def __init__(self, features, **config):
        super().__init__(features, **config)
        gains = 1 + np.sin(np.arange(STEPS * features)).reshape(STEPS, features) / 2
        self.gains = gains.astype(self.dtype)

    def __call__(self, x, *, step=0, out=None):
        return self.forward(x, step=step)[0]

    def forward(self, x, *, step=0, mask=None):
        gain = self.gains[min(step, STEPS - 1)]
        bias = self.parameters.get("bias")
        y, mean, rstd = normlib.layer_norm_forward(x, gain, bias, eps=self.eps)
        return y, (x, mean, rstd, gain)

    def backward(self, dy, cache):
        x, mean, rstd, gain = cache
        dx, _, dbias = normlib.layer_norm_backward(dy, x, mean, rstd, gain)
        grads = {key: np.zeros_like(array) for key, array in self.parameters.items()}
        return dx, grads | {key: dbias for key in grads if key == "bias"}

    def row_functions(self, *, training):
        rows = normlib.LayerNorm.row_functions(self, training=training)
        return rows._replace(parameters=(self.gains, rows.parameters[1]), names=(None, "bias"))


def alternating(first):
    """A factory of normalizers that are the identity at every second site."""
    made = itertools.count(first)

    def create(features, *, bias, dtype):
        norm = normlib.NoOp if next(made) % 2 else normlib.LayerNorm
        return norm(features, bias=bias, dtype=dtype)

    return create


def norm_config(norm):
    return {
        "noop": {"norm": None},
        "layer": {"norm": "layer", "norm_config": {"eps": 1e-3}},
        "no gain": {"norm": "layer", "norm_config": {"gain": False}},
        "even": {"norm": alternating(0)},
        "odd": {"norm": alternating(1)},
        "per step": {"norm": PerStep, "norm_config": {"gain": False}},
    }[norm]


NORMS = ("noop", "layer", "no gain", "even", "odd", "per step")
every_norm = pytest.mark.parametrize("norm", NORMS)
most_norms = pytest.mark.parametrize("norm", ["noop", "layer"])


def make(cell, norm, /, *, sizes=(5, 7), may_fuse=True, seed=0, **config):
    """An RNN none of whose parameters is at its starting value."""
    rnn = normlib.RNN(*sizes, rng=seed, **{**CELLS[cell], **norm_config(norm), **config})
    rng = np.random.default_rng(seed + 1)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape).astype(array.dtype)
    for one in rnn._directions:
        one.may_fuse = may_fuse
    assert (rnn.path.inference == rnn.path.training == "fused") == may_fuse
    return rnn


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def draw_state(rnn, rng, n_batch):
    shape = (rnn.num_layers * rnn.num_directions, n_batch, rnn.hidden_size)
    state = tuple(draw(rng, rnn.dtype, *shape) for _ in range(2))
    return state if rnn.cell == "lstm" else state[0]


def forward(rnn, x, state=None, lengths=None):
    """All arrays of inference, and of training, which must be the same."""
    y, final = rnn(x, state, lengths)
    y_training, final_training, cache = rnn.forward(x, state, lengths)
    arrays = [y, *as_list(final)]
    assert_same_bits(arrays, [y_training, *as_list(final_training)])
    return arrays, cache


def gradients(rnn, dy, cache, dstate=None):
    dx, d_initial, grads = rnn.backward(dy, cache, dstate)
    assert list(grads) == list(rnn.parameters)
    return [dx, *as_list(d_initial), *grads.values()]


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes(), np.argwhere(one != other)[:5]


def assert_close(actual, expected, ulps):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(1.0, float(np.abs(other).max(initial=0)))
        np.testing.assert_allclose(one, other, 0, ulps * np.finfo(other.dtype).eps * scale)


def use_level(monkeypatch, level):
    """Put the kernels of a CPU level where modules have imported those of another."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "normlib":
            continue
        for key, value in list(vars(module).items()):
            kernel = getattr(value, "__name__", "").rpartition(".")[2]
            if isinstance(value, type(sys)) and kernel in _kernels.KERNELS:
                monkeypatch.setattr(module, key, _kernels.load(kernel, level))
