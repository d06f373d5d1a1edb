"""Batch norm's running statistics: momentum, time steps, masks, and frozen."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normalizer_rows import expected, rows, set_randomly, tolerance
from normlib import BatchNorm, LayerNorm, NoOp

DTYPES = ["float32", "float64"]


def test_momentum_is_the_weight_of_the_new_value():
    norm = BatchNorm(3, momentum=0.25)
    batch = rows(5, 3)
    norm.forward(batch)
    np.testing.assert_allclose(norm.running_mean, [0.25 * batch.mean(0)], rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, [0.75 + 0.25 * batch.var(0)], rtol=1e-6)
    assert norm.running_mean.dtype == norm.running_var.dtype == np.float64
    assert norm.num_batches.tolist() == [1]


def test_no_momentum_is_the_plain_average():
    norm = BatchNorm(3, momentum=None, dtype="float64")
    batches = [rows(size, 3, seed=size) for size in (2, 5, 9)]
    for batch in batches:
        norm.forward(batch)
    np.testing.assert_allclose(norm.running_mean[0], np.mean([b.mean(0) for b in batches], 0))
    np.testing.assert_allclose(norm.running_var[0], np.mean([b.var(0) for b in batches], 0))


def test_momentum_zero_keeps_the_statistics():
    norm = BatchNorm(3, momentum=0)
    norm.forward(rows(5, 3))
    np.testing.assert_array_equal(norm.running_mean, np.zeros((1, 3)))
    np.testing.assert_array_equal(norm.running_var, np.ones((1, 3)))


def test_what_weighs_nothing_leaves_no_trace():
    with_nan = rows(5, 3)
    with_nan[2, 1] = np.nan
    for momentum, batches in ((0, [with_nan]), (1, [with_nan, rows(5, 3)])):
        norm = BatchNorm(3, momentum=momentum)
        for batch in batches:
            norm.forward(batch)
        assert np.isfinite(norm.running_mean).all()
        assert np.isfinite(norm.running_var).all()
        assert norm.num_batches.tolist() == [len(batches)]
    norm = BatchNorm(3, momentum=None)
    norm.running_mean[...] = np.nan
    norm.forward(rows(5, 3))
    assert np.isfinite(norm.running_mean).all()


def test_a_step_reads_its_own_row():
    norm = BatchNorm(3, momentum=1, steps=4, dtype="float64")
    x = rows(4, 3, seed=7)
    norm.forward(rows(5, 3, seed=1), step=1)
    for step, row in enumerate([0, 1, 2, 3, 3, 3]):
        want = expected(norm, x, norm.running_mean[row], norm.running_var[row])
        np.testing.assert_allclose(norm(x, step=step), want)
        y, cache = norm.forward_frozen(x, step=step)
        np.testing.assert_array_equal(y, norm(x, step=step))
        dx, _ = norm.backward(np.ones_like(x), cache)
        np.testing.assert_allclose(dx[0], 1 / np.sqrt(norm.running_var[row] + norm.eps))
    assert norm.num_batches.tolist() == [0, 1, 0, 0]


def test_every_step_has_its_statistics_and_later_ones_share_the_last():
    norm = BatchNorm(3, momentum=None, steps=2, dtype="float64")
    batches = [rows(5, 3, seed=step) for step in range(4)]
    for step, batch in enumerate(batches):
        norm.forward(batch, step=step)
    late = np.mean([batch.mean(0) for batch in batches[1:]], axis=0)
    np.testing.assert_allclose(norm.running_mean, [batches[0].mean(0), late])
    assert norm.num_batches.tolist() == [1, 3]
    x = rows(4, 3, seed=7)
    for step, row in ((0, 0), (1, 1), (2, 1), (99, 1)):
        want = expected(norm, x, norm.running_mean[row], norm.running_var[row])
        np.testing.assert_allclose(norm(x, step=step), want)
        np.testing.assert_array_equal(norm.forward_frozen(x, step=step)[0], norm(x, step=step))


def test_masked_rows_stay_out_of_the_statistics_and_are_normalized():
    norm = BatchNorm(3, momentum=1, dtype="float64")
    x, mask = rows(6, 3), np.array([True, False, True, True, False, True])
    y, _ = norm.forward(x, mask=mask)
    mean, var = x[mask].mean(0), x[mask].var(0)
    np.testing.assert_allclose(y, expected(norm, x, mean, var))
    np.testing.assert_allclose(norm.running_mean, [mean])
    np.testing.assert_allclose(norm.running_var, [var])


@pytest.mark.parametrize("parameters", [{}, {"gain": False}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_without_a_gradient_has_no_effect(dtype, parameters):
    norm = set_randomly(BatchNorm(3, dtype=dtype, **parameters))
    mask = np.array([[True, False, True], [True, True, False]])
    x, dy = rows(2, 3, 3, dtype=dtype), rows(2, 3, 3, dtype=dtype, seed=3)
    dy[~mask] = 0
    dx, grads = norm.backward(dy, norm.forward(x, mask=mask)[1])
    np.testing.assert_array_equal(dx[~mask], 0)
    largest = np.finfo(dtype).max
    for value in (np.nan, np.inf, -np.inf, largest, [np.nan, 1, largest]):
        x[~mask] = value
        _, cache = norm.forward(x, mask=mask)
        dx_padded, grads_padded = norm.backward(dy, cache)
        np.testing.assert_array_equal(dx_padded, dx)
        assert grads_padded.keys() == grads.keys()
        for key, gradient in grads.items():
            np.testing.assert_allclose(grads_padded[key], gradient, **tolerance(dtype))
        np.testing.assert_array_equal(x[~mask], np.broadcast_to(np.asarray(value, dtype), (2, 3)))
    # Where there is a gradient, what is normalized there matters.
    dy[~mask] = 1
    assert np.isnan(norm.backward(dy, cache)[0]).any()


@pytest.mark.parametrize(
    ("x", "mask"),
    [
        (rows(1, 3), None),
        (rows(0, 3), None),
        (rows(3), None),
        (rows(4, 3), np.array([False, True, False, False])),
        (rows(4, 3), np.zeros(4, bool)),
    ],
)
def test_fewer_than_two_rows_raise_and_leave_the_statistics(x, mask):
    norm = BatchNorm(3)
    norm.forward(rows(5, 3))
    before = norm.state_dict()
    with pytest.raises(ValueError, match="two"):
        norm.forward(x, mask=mask)
    for key, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_statistics_are_constants(dtype):
    norm = set_randomly(BatchNorm(3, momentum=1, dtype=dtype))
    norm.forward(rows(5, 3))
    before = norm.state_dict()
    x, dy = rows(2, 3, dtype=dtype, seed=1), rows(2, 3, dtype=dtype, seed=2)
    y, cache = norm.forward_frozen(x)
    np.testing.assert_array_equal(y, norm(x), strict=True)
    for key, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[key])
    norm.forward(rows(5, 3, seed=3))  # the cache keeps the statistics of its time
    dx, grads = norm.backward(dy, cache)
    rstd = 1 / np.sqrt(before["running_var"][0] + norm.eps)
    xhat = (x - before["running_mean"][0]) * rstd
    wanted = {"gain": np.sum(dy * xhat, 0), "bias": np.sum(dy.astype(np.float64), 0)}
    np.testing.assert_allclose(dx, dy * norm.parameters["gain"] * rstd, **tolerance(dtype))
    assert dx.dtype == dtype
    assert grads.keys() == wanted.keys()
    for key, want in wanted.items():
        np.testing.assert_allclose(grads[key], want, **tolerance(dtype))
        assert grads[key].dtype == dtype


@pytest.mark.parametrize("cls", [LayerNorm, NoOp])
def test_frozen_is_forward_when_per_sample(cls):
    x = rows(1, 3)
    np.testing.assert_array_equal(cls(3).forward_frozen(x)[0], cls(3).forward(x)[0])


def test_inference_from_many_threads():
    norm = BatchNorm(64, dtype="float32")
    norm.forward(rows(50, 64))
    x = rows(200, 64, dtype="float32", seed=1)
    want = norm(x)
    with ThreadPoolExecutor(8) as pool:
        for y in pool.map(lambda _: norm(x), range(64)):
            np.testing.assert_array_equal(y, want)
