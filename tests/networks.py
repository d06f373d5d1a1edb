"""Networks and states that the tests of `normlib.RNN` share."""

import numpy as np
import pytest

import normlib

T, N, I, H = 5, 4, 3, 4
LENGTHS = [3, 5, 0, 2]
CELLS = {
    "tanh": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "classic": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
}
NORMS = {
    "noop": {"norm": None},
    "layer": {"norm": "layer", "norm_config": {"eps": 1e-3}},
    "batch": {"norm": "batch", "norm_config": {"eps": 1e-3, "steps": 3, "momentum": 0.3}},
}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_norm = pytest.mark.parametrize("norm", NORMS)
per_sample = pytest.mark.parametrize("norm", ["noop", "layer"])
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def make(cell, norm, /, *, seed=0, sizes=(I, H), **config):
    """An RNN none of whose parameters and statistics is at its starting value."""
    config = {**CELLS[cell], **NORMS[norm], "dtype": np.float64, **config}
    rnn = normlib.RNN(*sizes, rng=seed, **config)
    rng = np.random.default_rng(seed + 1)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape)
    for normalizer in rnn.normalizers.values():
        for key in normalizer.buffers.keys() & {"running_mean", "running_var"}:
            normalizer.buffers[key] += rng.uniform(0, 1, normalizer.buffers[key].shape)
    return rnn


def as_list(state):
    return list(state) if isinstance(state, tuple) else [state]


def like(rnn, arrays):
    return tuple(arrays) if rnn.cell == "lstm" else arrays[0]


def draw_state(rnn, rng, n_batch=N):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), n_batch, rnn.hidden_size)
    return like(rnn, [rng.standard_normal(shape) for _ in range(2)])


def assert_equal_states(actual, expected):
    for one, other in zip(as_list(actual), as_list(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_state(rnn, before):
    """Parameters and statistics are those of a state dictionary."""
    state = rnn.state_dict()
    assert state.keys() == before.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
