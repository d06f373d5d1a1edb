"""Normalizers in the fused loop over time: what they compute step by step, and when they are in."""

import numpy as np
import pytest

import normlib
from fused_networks import use_level
from normlib import _kernels, normalizers

T, N, I, H = 7, 5, 6, 20
CELLS = {
    "tanh": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "classic": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
}
NORMS = {
    "layer": {},
    "rms": {},
    "rms without gain": {"gain": False},
    "group": {},
    "group of 1": {"groups": 1},
    "group without gain": {"gain": False},
    "instance": {},
    "instance without gain": {"gain": False},
}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def make(cell, norm, dtype, **config):
    rnn = normlib.RNN(
        I, H, **CELLS[cell], norm=norm.split()[0], norm_config=NORMS[norm], dtype=dtype, rng=0,
        **config,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape)
    return rnn


def both_ways(rnn, run):
    """What run returns, with the fused loop and step by step."""
    results = []
    for fused in (True, False):
        for direction in rnn._directions:
            direction.may_fuse = fused
            for training in (False, True):
                assert (direction.path(training=training) == "") is fused
        results.append(run())
    return results


def arrays_of(state):
    return state if isinstance(state, tuple) else (state,)


@every_cell
@every_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lengths", [None, [3, 7, 0, 7, 2]])
def test_the_fused_loop_computes_what_steps_do(cell, norm, dtype, lengths):
    rnn = make(cell, norm, dtype, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((T, N, I)).astype(dtype)
    dy = rng.standard_normal((T, N, 2 * H)).astype(dtype)

    def run():
        y, state = rnn(x, lengths=lengths)
        y_training, state_training, cache = rnn.forward(x, lengths=lengths)
        dx, dstate, grads = rnn.backward(dy, cache)
        same = (y, *arrays_of(state), y_training, *arrays_of(state_training))
        return same, {"dx": dx, "dstate": np.stack(arrays_of(dstate)), **grads}

    (fused, fused_gradients), (steps, gradients) = both_ways(rnn, run)
    for a, b in zip(fused, steps, strict=True):
        np.testing.assert_array_equal(a, b)
    assert fused_gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        tolerance = 64 * np.finfo(dtype).eps * max(1, np.abs(expected).max())
        np.testing.assert_allclose(fused_gradients[name], expected, 0, tolerance, err_msg=name)


@every_norm
@every_cell
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", _kernels.available_levels())
def test_a_row_has_the_same_bits_alone_and_beside_others(
    cell, norm, dtype, level, share, monkeypatch
):
    use_level(monkeypatch, level)
    rnn = make(cell, norm, dtype)
    x = np.random.default_rng(4).standard_normal((T, 11, I)).astype(dtype)
    x[2, 5] = np.nan
    for n_threads in (1, 2, 3):
        share(n_threads, False)
        y, state = rnn(x)
        assert np.isfinite(y[:, np.arange(11) != 5]).all()
        for row in range(11):
            one, state_one = rnn(x[:, row : row + 1])
            np.testing.assert_array_equal(y[:, row : row + 1], one)
            for alone, array in zip(arrays_of(state_one), arrays_of(state), strict=True):
                np.testing.assert_array_equal(alone, array[:, row : row + 1])


@every_norm
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_extreme_rows(cell, norm, size):
    rnn = make(cell, norm, np.float32)
    x = np.random.default_rng(3).standard_normal((T, N, I)).astype(np.float32)
    x[:, 1] *= np.float32(size)
    x[2, 3] = np.nan

    def run():
        y, _, cache = rnn.forward(x)
        dx, _, _ = rnn.backward(np.ones_like(y), cache)
        return y, dx

    (y, dx), (y_steps, dx_steps) = both_ways(rnn, run)
    np.testing.assert_array_equal(y, y_steps)
    np.testing.assert_allclose(dx, dx_steps, 1e-4, 1e-5)
    assert np.isfinite(y[:, [0, 1, 2, 4]]).all()


@pytest.mark.parametrize("method", ["__call__", "forward", "backward", "affine"])
@pytest.mark.parametrize(
    "base", [normalizers.RMSNorm, normalizers.GroupNorm, normalizers.InstanceNorm]
)
def test_a_method_that_is_overridden_runs(base, method):
    replaced = {
        method: lambda self, *args, **options: getattr(base, method)(self, *args, **options)
    }
    cls = type("Own", (base,), replaced)
    assert base(8).row_functions(training=True) is not None
    assert cls(8).row_functions(training=True) is None
