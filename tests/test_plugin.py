"""A third-party distribution, outside the source tree, from its entry point to a trained LSTM."""

from pathlib import Path

import numpy as np
import pytest

import normlib
from normlib.testing import check_normalizer

pytest_plugins = ["plugins"]

SOURCE = Path(__file__).with_name("python_norm.py").read_text(encoding="utf-8")


@pytest.fixture
def plugin(installer):
    entry_points = "root-mean-square = third_party_norm:RMSNorm"
    installer.install("third-party-norm", entry_points, third_party_norm=SOURCE)
    return "root-mean-square"


def test_it_is_found_by_name(plugin):
    assert plugin in normlib.available()
    norm = normlib.create(plugin, 2, eps=0)
    np.testing.assert_allclose(norm(np.array([[1.0, 7.0]])), [[0.2, 1.4]], rtol=1e-6)


def test_it_passes_the_kit(plugin):
    assert check_normalizer(plugin) == list(normlib.testing.CHECKS)


def test_it_trains_in_an_lstm(plugin):
    rng = np.random.default_rng(0)
    rnn = normlib.RNN(2, 16, cell="lstm", norm=plugin, rng=rng)
    x = rng.normal(size=(6, 32, 2)).astype(np.float32)
    target = np.sign(np.sum(x[:, :, :1] * x[:, :, 1:], axis=0))  # which needs more than a sum
    readout = rng.normal(size=(16, 1)).astype(np.float32) / 4
    losses = []
    for _ in range(60):
        y, _, cache = rnn.forward(x)
        error = y[-1] @ readout - target
        losses.append(float(np.mean(error**2)))
        dy = np.zeros_like(y)
        dy[-1] = 2 * error @ readout.T / len(error)
        _, _, grads = rnn.backward(dy, cache)
        for name, parameter in rnn.parameters.items():
            parameter -= 0.5 * grads[name]
        readout -= 0.1 * (2 * y[-1].T @ error / len(error))
    assert losses[-1] < 0.5 * losses[0]
    gains = {name: array for name, array in rnn.parameters.items() if name.endswith(".gain")}
    assert len(gains) == 3
    for name, gain in gains.items():
        assert np.any(gain != 1), f"{name} was not trained"
