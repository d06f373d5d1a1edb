"""Recurrent batch norm: statistics of each step, batches without any, constant inputs.

The paper is Cooijmans et al., "Recurrent Batch Normalization", arXiv:1603.09025.
"""

import pickle

import numpy as np
import pytest

import normlib
from gradcheck import assert_gradient
from networks import (
    CELLS,
    H,
    I,
    N,
    T,
    as_list,
    draw_state,
    every_cell,
    every_dtype,
    make,
    per_sample,
)
from normlib import errors

# ---- statistics of each step ---------------------------------------------------------------------


def test_statistics_of_each_step_and_the_last_ones_beyond():
    rnn = make("tanh", "batch", norm_config={"steps": 3, "momentum": None, "eps": 1e-3})
    norm = rnn.normalizers["norm_a_l0"]
    rnn.forward(np.random.default_rng(0).standard_normal((T, N, I)))
    assert norm.num_batches.tolist() == [1, 1, 3]
    assert len(np.unique(norm.running_mean, axis=0)) == 3
    x = np.random.default_rng(1).standard_normal((N, I))
    last = rnn.step(x, step=2)[0]
    for step in (3, 4, 1000):
        np.testing.assert_array_equal(rnn.step(x, step=step)[0], last)
    assert not np.array_equal(rnn.step(x, step=1)[0], last)


def test_gains_and_biases_are_shared_and_gains_start_at_a_tenth():
    rnn = normlib.RNN(I, H, norm="batch", norm_config={"steps": 7})
    for site, normalizer in rnn.normalizers.items():
        assert normalizer.running_mean.shape == (7, normalizer.features)
        assert rnn.parameters[f"{site}.gain"].shape == (normalizer.features,)
        assert np.all(rnn.parameters[f"{site}.gain"] == np.float32(0.1))
    assert rnn.parameters["norm_c_l0.bias"].shape == (H,)


def test_steps_of_one_row_leave_the_running_statistics():
    rnn = make("lstm", "batch", norm_config={"steps": T})
    before = rnn.state_dict()
    rnn.forward(np.random.default_rng(0).standard_normal((T, 3, I)), None, [2, 5, 3])
    after = rnn.state_dict()
    for site in rnn.normalizers:
        batches = after[f"{site}.num_batches"] - before[f"{site}.num_batches"]
        assert batches.tolist() == [1, 1, 1, 0, 0]
        changed = after[f"{site}.running_mean"] != before[f"{site}.running_mean"]
        assert changed.any(axis=1).tolist() == [True, True, True, False, False]


# ---- batches without statistics ------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize(
    ("shape", "lengths", "rows"),
    [
        ((T, 1, I), None, 1),
        ((T, 1, I), [3], 1),
        ((T, N, I), [0] * N, 0),
        ((T, N, I), [0, T, 0, 0], 1),
        ((T, 0, I), None, 0),
        ((0, N, I), None, 0),
    ],
)
def test_a_batch_without_two_valid_rows_is_refused(cell, shape, lengths, rows):
    rnn = make(cell, "batch", num_layers=2, bidirectional=True)
    before = rnn.state_dict()
    message = f"at least 2 rows with a valid time step, .* BatchNorm at norm_.*; got {rows} in x"
    with pytest.raises(errors.ShapeError, match=f"^forward .*{message}"):
        rnn.forward(np.ones(shape), None, lengths)
    with rnn.population() as population:
        with pytest.raises(errors.ShapeError, match=f"^update .*{message}"):
            population.update(np.ones(shape), None, lengths)
        assert population.num_batches == 0
        population.update(np.ones((T, N, I)))
    rnn.load_state_dict(before)
    y, _ = rnn(np.ones(shape), None, lengths)  # inference is not refused
    assert y.shape == (*shape[:2], 2 * H)


@every_cell
@per_sample
def test_normalizers_per_sample_take_any_batch(cell, norm):
    rnn = make(cell, norm)
    for shape, lengths in (((T, 1, I), None), ((T, N, I), [0] * N), ((T, 0, I), None)):
        rnn.forward(np.ones(shape), None, lengths)


# ---- constant inputs -----------------------------------------------------------------------------


def images(rng, n_black, n_steps, dtype):
    """Sequences of pixels of which the first are black."""
    x = np.zeros((n_steps, 8, 1), dtype)
    x[n_black:] = rng.uniform(0, 1, (n_steps - n_black, 8, 1))
    return x


@every_cell
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_gradients_are_finite_where_inputs_are_constant(cell, options):
    """In float32 as in float64, and for more steps than there are orders of magnitude."""
    results = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(0)
        rnn = normlib.RNN(
            1, 16, norm="batch", norm_config={"steps": 310}, rng=0, dtype=dtype, **CELLS[cell],
            **options,
        )  # fmt: skip
        y, _, cache = rnn.forward(images(rng, 300, 310, dtype))
        dx, dstate, grads = rnn.backward(rng.standard_normal(y.shape), cache)
        for array in (y, dx, *as_list(dstate), *grads.values()):
            assert np.isfinite(array).all()
        results.append(grads)
    if options:  # its reverse direction runs over varied pixels first: chaos, but within numbers
        return
    for name, gradient in results[1].items():
        scale = np.abs(gradient).max()
        assert scale > 0
        np.testing.assert_allclose(results[0][name], gradient, rtol=0, atol=0.05 * scale)


@every_cell
@pytest.mark.parametrize("lengths", [None, [9, 9, 8, 9, 2, 6, 9, 0]])
def test_gradients_of_parameters_are_exact_where_inputs_are_constant(cell, lengths):
    rng = np.random.default_rng(0)
    rnn = normlib.RNN(
        1, 3, norm="batch", norm_config={"steps": 9}, rng=0, dtype=np.float64, num_layers=2,
        **CELLS[cell],
    )  # fmt: skip
    x = images(rng, 5, 9, np.float64)
    for name, array in rnn.parameters.items():
        if name.startswith("bias"):  # away from the kink of relu
            array += rng.uniform(0.1, 0.3, array.shape)
    dy = rng.standard_normal((9, 8, 3))
    before = rnn.state_dict()

    def loss():
        for site, normalizer in rnn.normalizers.items():
            for key, array in normalizer.buffers.items():
                array[...] = before[f"{site}.{key}"]
        return np.sum(rnn.forward(x, None, lengths)[0] * dy)

    _, _, cache = rnn.forward(x, None, lengths)
    _, _, grads = rnn.backward(dy, cache)
    for name, gradient in grads.items():
        assert_gradient(gradient, loss, rnn.parameters[name], tolerance=1e-5)


def test_rows_alike_get_the_mean_and_others_their_own():
    """Where they are alike but for the state, or in part, a gradient stays as it is."""
    rng = np.random.default_rng(0)
    rnn = make("gru", "batch", sizes=(1, 4))
    x = np.zeros((2, N, 1))
    y, _, cache = rnn.forward(x)
    dx, _, _ = rnn.backward(rng.standard_normal(y.shape), cache)
    np.testing.assert_allclose(dx, np.broadcast_to(dx[:, :1], dx.shape), rtol=1e-12)
    for state in (
        draw_state(rnn, rng),
        np.tile(np.array([0.0, 0.0, 0.0, 1.0])[:, None], (1, 1, 4)),
    ):
        y, _, cache = rnn.forward(x, state)
        dx, dstate, _ = rnn.backward(np.zeros_like(y), cache, rng.standard_normal((1, N, 4)))
        assert len(np.unique(dx[0])) == N
        assert len(np.unique(dstate[0, :, 0])) == N
    layer = make("gru", "layer", sizes=(1, 4))
    y, _, cache = layer.forward(x)
    dx, _, _ = layer.backward(rng.standard_normal(y.shape), cache)
    assert len(np.unique(dx)) == dx.size


# ---- what is kept between calls ------------------------------------------------------------------


@every_cell
@every_dtype
def test_changed_statistics_are_seen(cell, dtype):
    """By inference in the fused loop, which keeps factors made of them, whatever changes how."""
    rng = np.random.default_rng(0)
    rnn = make(cell, "batch", dtype=dtype)
    x = rng.standard_normal((T, N, I)).astype(dtype)
    site = next(iter(rnn.normalizers))
    norm = rnn.normalizers[site]
    state_dict = make(cell, "batch", dtype=dtype, seed=5).state_dict()

    def replace(array):
        norm.buffers["running_mean"] = array

    changes = [
        lambda: norm.running_mean.__iadd__(0.5),
        lambda: norm.running_var.__imul__(2),
        lambda: norm.running_var.__setitem__(-1, 7),
        lambda: norm.parameters["gain"].__imul__(3),
        lambda: norm.parameters.update(gain=norm.parameters["gain"] + 1),
        lambda: setattr(norm, "eps", 0.5),
        lambda: replace(norm.running_mean + 1),
        lambda: replace(np.repeat(norm.running_mean, 2, axis=1)[:, ::2] + 1),
        lambda: rnn.forward(x),
        lambda: rnn.load_state_dict(state_dict),
    ]
    last = rnn(x)[0]
    np.testing.assert_array_equal(rnn(x)[0], last)
    for change in changes:
        change()
        assert rnn.path.inference == "fused"
        actual = rnn(x)[0]
        assert not np.array_equal(actual, last)
        fresh = pickle.loads(pickle.dumps(rnn))
        for given in (x, x[:1]):
            expected = fresh(given, lengths=[len(given)] * N)[0]
            np.testing.assert_array_equal(rnn(given)[0], expected)
            for one in fresh._directions:
                one.may_fuse = False
            np.testing.assert_array_equal(fresh(given)[0], expected)
            for one in fresh._directions:
                one.may_fuse = True
        np.testing.assert_array_equal(rnn.step(x[0])[0], actual[0])
        last = actual
