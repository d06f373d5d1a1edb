"""layer_norm, forward and backward, against the oracle."""

import numpy as np
import pytest

import normlib
from gradcheck import assert_gradient
from reference import INPUTS, layer_norm, layer_norm_backward, ulps

SHAPES = [(1, 1), (3, 2), (5, 7), (4, 16), (9, 33), (17, 64), (6, 100), (13, 768), (2, 5000)]
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_forward_within_four_ulp(cpu_level, n_threads, dtype, kind, rng):
    for shape in SHAPES:
        x = INPUTS[kind](rng, shape).astype(dtype)
        gain = rng.uniform(0.5, 1.5, shape[1]).astype(dtype)
        bias = rng.standard_normal(shape[1]).astype(dtype)
        for affine in [(None, None), (gain, None), (None, bias), (gain, bias)]:
            y, mean, rstd = normlib.layer_norm_forward(x, *affine)
            expected, expected_mean, expected_rstd = layer_norm(x, *affine)
            # Before the bias, so that its cancellation is not charged to the kernel.
            size = np.maximum(np.abs(expected), np.abs(layer_norm(x, affine[0])[0]))
            error = np.abs(y - expected) / (np.finfo(dtype).eps * np.maximum(1, size))
            assert error.max() <= 4, (shape, affine)
            assert mean.dtype == rstd.dtype == np.float64
            atol = 1e-14 * float(np.abs(x - expected_mean).max())
            np.testing.assert_allclose(
                mean, expected_mean[:, 0].astype(float), rtol=1e-15, atol=atol
            )
            np.testing.assert_allclose(rstd, expected_rstd[:, 0].astype(float), rtol=1e-11)
            np.testing.assert_array_equal(normlib.layer_norm(x, *affine), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_rows_give_exactly_the_bias(cpu_level, dtype, rng):
    for n in [1, 2, 63, 64, 65, 1000, 20000]:
        x = np.repeat(
            rng.standard_normal((5, 1)) * [[1], [1e4], [1e-4], [1e20], [1e-20]], n, axis=1
        )
        bias = rng.standard_normal(n).astype(dtype)
        y = normlib.layer_norm(x.astype(dtype), np.full(n, 2, dtype), bias)
        np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (np.float32, [1e-43, 1e-40, 1e-20, 1e18, 1e20, 3e38]),
        (np.float64, [1e-305, 1e-300, 1e200, 1e307]),
    ],
)
def test_extreme_rows_without_eps(cpu_level, dtype, scales, rng):
    """Squares overflow and underflow, and reciprocals too; in a group of rows and beside it."""
    for scale in scales:
        x = (scale * rng.uniform(-1, 1, (19, 77))).astype(dtype)
        y, mean, rstd = normlib.layer_norm_forward(x, eps=0)
        assert ulps(y, layer_norm(x, eps=0)[0], dtype) <= 4
        np.testing.assert_array_equal(normlib.layer_norm(x, eps=0), y)
        dy = rng.standard_normal(x.shape).astype(dtype)
        dx, dgain, _ = normlib.layer_norm_backward(dy, x, mean, rstd, np.ones(77, dtype))
        expected_dx, summands, _ = layer_norm_backward(dy, x, eps=0)
        with np.errstate(over="ignore"):
            expected_dx = expected_dx.astype(dtype)
        finite = np.isfinite(expected_dx)
        largest = np.abs(expected_dx[finite]).max(initial=0)
        np.testing.assert_allclose(dx[finite], expected_dx[finite], rtol=1e-4, atol=1e-5 * largest)
        np.testing.assert_allclose(dgain, summands.sum(0).astype(float), rtol=1e-4, atol=1e-4)


def test_backward_of_small_gradients_and_large_rows(cpu_level, rng):
    """The slope of dx by x leaves the range of float32, dx does not, nor the row beside it."""
    x = rng.uniform(-1, 1, (9, 77)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    x[2] *= 1e8
    dy[2] *= 1e-18
    x[5] *= 1e-12
    dy[5] *= 1e15
    x[7] *= 1e25
    _, mean, rstd = normlib.layer_norm_forward(x, eps=0)
    dx, _, _ = normlib.layer_norm_backward(dy, x, mean, rstd)
    expected, _, _ = layer_norm_backward(dy, x, eps=0)
    for row, expected_row in zip(dx, expected.astype(float), strict=True):
        np.testing.assert_allclose(row, expected_row, atol=2e-6 * np.abs(expected_row).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_stay_in_their_row(cpu_level, n_threads, dtype, rng):
    x = rng.standard_normal((40, 70)).astype(dtype)
    clean = normlib.layer_norm(x)
    x[3, 5] = np.nan
    x[20, 0] = np.inf
    x[39, 69] = -np.inf
    y, mean, rstd = normlib.layer_norm_forward(x)
    bad = [3, 20, 39]
    assert np.isnan(y[bad]).all()
    good = np.setdiff1d(np.arange(40), bad)
    np.testing.assert_array_equal(y[good], clean[good])
    assert np.isfinite(mean[good]).all()
    dx, _, _ = normlib.layer_norm_backward(np.ones_like(x), x, mean, rstd)
    assert np.isfinite(dx[good]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "mean dwarfs spread", "shifted integers", "huge"])
def test_backward_against_oracle(cpu_level, n_threads, dtype, kind, rng):
    for shape in [*SHAPES, (200, 70)]:
        if shape[1] < 3:
            continue
        x = INPUTS[kind](rng, shape).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        gain = rng.uniform(0.5, 1.5, shape[1]).astype(dtype)
        for g in (gain, None):
            _, mean, rstd = normlib.layer_norm_forward(x, g)
            dx, dgain, dbias = normlib.layer_norm_backward(dy, x, mean, rstd, g)
            expected_dx, gain_terms, bias_terms = layer_norm_backward(dy, x, g)
            eps = np.finfo(dtype).eps
            rstd_max = float(rstd.max())
            assert np.abs(dx - expected_dx).max() <= 8 * eps * rstd_max * np.abs(dy).max() * 1.5
            assert (np.abs(dbias - bias_terms.sum(0)) <= 4 * eps * np.abs(bias_terms).sum(0)).all()
            if g is None:
                assert dgain is None
            else:
                bound = 8 * eps * np.maximum(1, np.abs(gain_terms)).sum(0)
                assert (np.abs(dgain - gain_terms.sum(0)) <= bound).all()


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (1, 2)])
def test_backward_against_differences(cpu_level, axis, rng):
    x = rng.standard_normal((3, 4, 5))
    axes = (axis,) if isinstance(axis, int) else axis
    shape = tuple(x.shape[a] for a in sorted(a % 3 for a in axes))
    gain = rng.standard_normal(shape)
    bias = rng.standard_normal(shape)
    dy = rng.standard_normal(x.shape)

    def loss():
        return float((dy * normlib.layer_norm(x, gain, bias, axis=axis)).sum())

    _, mean, rstd = normlib.layer_norm_forward(x, gain, bias, axis=axis)
    dx, dgain, dbias = normlib.layer_norm_backward(dy, x, mean, rstd, gain, axis=axis)
    assert_gradient(dx, loss, x)
    assert_gradient(dgain, loss, gain)
    assert_gradient(dbias, loss, bias)


def test_constant_gradient_gives_exactly_zero(cpu_level, rng):
    """dx is orthogonal to constants; a dy of one large value must cancel in full."""
    x = rng.standard_normal((8, 300)).astype(np.float32)
    _, mean, rstd = normlib.layer_norm_forward(x)
    dx, _, _ = normlib.layer_norm_backward(np.full_like(x, 1000.1), x, mean, rstd)
    assert np.abs(dx).max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearly_constant_gradient_keeps_its_digits(cpu_level, dtype, rng):
    x = rng.standard_normal((8, 300)).astype(dtype)
    dy = (1e4 + rng.standard_normal((8, 300))).astype(dtype)
    _, mean, rstd = normlib.layer_norm_forward(x)
    dx, _, _ = normlib.layer_norm_backward(dy, x, mean, rstd)
    expected, _, _ = layer_norm_backward(dy, x)
    assert np.abs(dx - expected).max() < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("mean", [1e4, 1e8, 1e12])
def test_float64_backward_where_the_mean_dwarfs_the_spread(cpu_level, mean, rng):
    """A float64 mean has no room for what the deviations need."""
    x = mean + rng.standard_normal((8, 64))
    dy = rng.standard_normal((8, 64))
    gain = np.ones(64)
    _, mean, rstd = normlib.layer_norm_forward(x, gain)
    dx, dgain, _ = normlib.layer_norm_backward(dy, x, mean, rstd, gain)
    expected, gain_terms, _ = layer_norm_backward(dy, x, gain)
    np.testing.assert_allclose(dx, expected.astype(float), rtol=0, atol=1e-14)
    np.testing.assert_allclose(dgain, gain_terms.sum(0).astype(float), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("axis", "axes"),
    [(-1, (2,)), (0, (0,)), (1, (1,)), ((0, 1), (0, 1)), ((2, 0), (0, 2)), ((0, 1, 2), (0, 1, 2))],
)
def test_axes(axis, axes, rng):
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    shape = tuple(x.shape[a] for a in axes)
    gain = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(shape).astype(np.float32)
    y, mean, rstd = normlib.layer_norm_forward(x, gain, bias, axis=axis)
    broadcast = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    expected, expected_mean, expected_rstd = layer_norm(
        x, gain.reshape(broadcast), bias.reshape(broadcast), axes
    )
    np.testing.assert_allclose(y, expected.astype(float), rtol=1e-5, atol=1e-5)
    assert y.flags.c_contiguous
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    assert mean.shape == rstd.shape == kept
    np.testing.assert_allclose(mean, expected_mean.reshape(kept).astype(float), atol=1e-7)
    np.testing.assert_allclose(rstd, expected_rstd.reshape(kept).astype(float), rtol=1e-6)


@pytest.mark.parametrize("features", [3, 64, 100, 768, 3000, 3200])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_arrays_that_leave_the_cache(cpu_level, n_threads, features, offset, rng):
    """An output of large arrays has the bits of its rows alone, wherever it starts."""
    shape = ((1 << 21) // features + 3, features)
    x = rng.standard_normal(shape, dtype=np.float32)
    gain, bias = rng.standard_normal((2, features), dtype=np.float32)
    memory = np.full(x.size + 64, 7, np.float32)
    start = -memory.ctypes.data // 4 % 16 + offset
    out = memory[start : start + x.size].reshape(shape)
    normlib.layer_norm(x, gain, bias, out=out)
    for rows in np.array_split(np.arange(shape[0]), 7):
        part = normlib.layer_norm(x[rows], gain, bias)
        np.testing.assert_array_equal(out[rows], part)
    assert (memory[:start] == 7).all()
    assert (memory[start + x.size :] == 7).all()
    normlib.layer_norm(x, gain, bias, out=x)
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("function", [normlib.layer_norm, normlib.rms_norm])
def test_rows_past_every_cache_have_the_same_bits(cpu_level, n_threads, function, rng):
    x = rng.standard_normal((8195, 1024), dtype=np.float32)
    gain = rng.standard_normal(1024, dtype=np.float32)
    y = function(x, gain)
    for rows in (slice(0, 7), slice(4090, 4101), slice(-3, None)):
        np.testing.assert_array_equal(y[rows], function(x[rows], gain))
