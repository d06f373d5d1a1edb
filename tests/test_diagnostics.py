"""Diagnostics against their definitions, and gradients by step against central differences."""

import importlib
import sys

import numpy as np
import pytest

import normlib
from gradcheck import numerical_gradient
from normlib import errors
from normlib.diagnostics import gradient_norms, hidden_state, plots


def test_hidden_state_by_its_definition(rng):
    y = rng.standard_normal((5, 4, 3)).astype(np.float32)
    state = hidden_state(y, threshold=1.1)
    for step in range(5):
        h = y[step].astype(np.float64)
        np.testing.assert_allclose(state.norm[step], np.linalg.norm(h, axis=1).mean(), rtol=1e-14)
        np.testing.assert_allclose(state.mean[step], h.mean(), atol=1e-15)
        np.testing.assert_allclose(state.spread[step], h.std(), rtol=1e-14)
        assert state.saturation[step] == np.mean(np.abs(h) > 1.1)


def test_padded_time_steps_do_not_count(rng):
    rnn = normlib.RNN(2, 3, rng=0)
    x = rng.standard_normal((4, 3, 2))
    lengths = np.array([1, 3, 2])
    y, _ = rnn(x, lengths=lengths)
    state = hidden_state(y, lengths)
    for step in range(3):
        expected = hidden_state(y[step : step + 1, lengths > step])
        np.testing.assert_array_equal([f[step] for f in state], np.ravel(expected))
    assert np.all(np.isnan([field[3] for field in state]))


def test_no_time_steps_and_no_rows():
    assert hidden_state(np.empty((0, 2, 3))).norm.shape == (0,)
    assert np.isnan(hidden_state(np.empty((1, 0, 3))).norm[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((2, 3)),), errors.ShapeError, r"y must have shape \(T, N, H\)"),
        ((np.zeros((2, 3, 4), int),), errors.DTypeError, "float32 or float64"),
        ((np.zeros((2, 3, 4)), [1, 1]), errors.ShapeError, "lengths must have shape"),
        ((np.zeros((2, 3, 4)), [1, 1, 3]), errors.ParameterError, "lengths"),
    ],
)
def test_hidden_state_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        hidden_state(*arguments)


@pytest.mark.parametrize("threshold", [-1, "0.9", True, np.nan])
def test_threshold_is_a_number(threshold):
    with pytest.raises(errors.ParameterError, match="threshold must be"):
        hidden_state(np.zeros((1, 1, 1)), threshold=threshold)


@pytest.mark.parametrize("norm", ["noop", "layer", "batch"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_by_step_are_derivatives(cell, norm, rng):
    """Of the loss, by the state after each step, as central differences find them."""
    rnn = normlib.RNN(2, 3, cell=cell, norm=norm, num_layers=2, rng=0, dtype=np.float64)
    x, dy = rng.standard_normal((4, 5, 2)), rng.standard_normal((4, 5, 3))
    before = rnn.state_dict()
    norms = gradient_norms(rnn, x, dy)
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])

    # Training uses the statistics of the batch, so that running ones do not matter here.
    for step in range(3):
        _, state, _ = rnn.forward(x[: step + 1])
        parts = list(state) if isinstance(state, tuple) else [state]

        def loss(step=step, parts=parts):
            start = tuple(parts) if len(parts) > 1 else parts[0]
            y, _, _ = rnn.forward(x[step + 1 :], start)
            return np.sum(y * dy[step + 1 :]) + np.sum(parts[0][-1] * dy[step])

        for part, measured in zip(parts, (norms.h, norms.c), strict=False):
            gradient = numerical_gradient(loss, part)
            expected = np.sqrt(np.sum(gradient**2, axis=(1, 2)))
            np.testing.assert_allclose(measured[:, step], expected, rtol=1e-5, atol=1e-9)
    dx, _, _ = rnn.backward(dy, rnn.forward(x)[2])
    np.testing.assert_allclose(norms.x, np.sqrt(np.sum(dx**2, axis=(1, 2))), rtol=1e-12)
    assert (norms.c is None) == (cell != "lstm")


def test_a_gradient_at_the_last_step_alone(rng):
    rnn = normlib.RNN(2, 3, rng=0)
    x, last = rng.standard_normal((4, 5, 2)), rng.standard_normal((5, 3)).astype(np.float32)
    dy = np.zeros((4, 5, 3), np.float32)
    dy[-1] = last
    for one, other in zip(gradient_norms(rnn, x, last), gradient_norms(rnn, x, dy), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(gradient_norms(rnn, x, last).h[0, -1], np.linalg.norm(last))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_that_explodes_is_measured(dtype, rng):
    rnn = normlib.RNN(2, 4, cell="rnn", norm=None, nonlinearity="relu", dtype=dtype, rng=0)
    rnn.parameters["weight_hh_l0"] = np.full((4, 4), 1e6)
    x = np.abs(rng.standard_normal((120, 3, 2)).astype(dtype))
    state = hidden_state(rnn(x)[0])
    assert np.isfinite(state.norm[0])
    assert not np.isfinite([state.norm[-1], state.mean[-1], state.spread[-1]]).any()
    norms = gradient_norms(rnn, x, np.ones((3, 4), dtype))
    assert np.isfinite(norms.h[0, -1])
    assert not np.isfinite(norms.h[0, 0])


def test_gradient_norms_refuse(rng):
    x = rng.standard_normal((4, 5, 2))
    with pytest.raises(errors.ParameterError, match="bidirectional=False"):
        gradient_norms(normlib.RNN(2, 3, bidirectional=True), x, np.zeros((4, 5, 6)))
    with pytest.raises(errors.ParameterError, match="at least 2 rows"):
        gradient_norms(normlib.RNN(2, 3, norm="batch"), x[:, :1], np.zeros((1, 3)))
    for bad in (np.zeros((3, 5, 3)), np.zeros((5, 4)), np.zeros(3)):
        with pytest.raises(errors.ShapeError, match="dy must have the shape of y"):
            gradient_norms(normlib.RNN(2, 3), x, bad)
    with pytest.raises(errors.ShapeError, match="x must have shape"):
        gradient_norms(normlib.RNN(2, 3), x[0], np.zeros((5, 3)))


def test_pictures(rng, tmp_path):
    rnn = normlib.RNN(2, 3, rng=0)
    x = rng.standard_normal((6, 5, 2))
    states = [hidden_state(rnn(part)[0]) for part in (x, 2 * x)]
    figure = plots.plot_hidden_states({"one": states[0], "two": states})
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 2]
    one, two = figure.axes[2].lines
    np.testing.assert_array_equal(one.get_ydata(), states[0].spread)
    np.testing.assert_allclose(two.get_ydata(), (states[0].spread + states[1].spread) / 2)
    figure.savefig(tmp_path / "hidden.png")

    norms = gradient_norms(rnn, x, np.ones((5, 3)))
    figure = plots.plot_gradients({"one": norms, "two": [norms, norms]})
    expected = np.log10(norms.h[0, ::-1] / norms.h[0, -1])
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_ydata(), expected)
    figure.savefig(tmp_path / "gradients.png")


def test_pictures_need_an_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "normlib.diagnostics.plots")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"normlib\[plots\]"):
        importlib.import_module("normlib.diagnostics.plots")
