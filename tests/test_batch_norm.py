"""batch_norm, training and inference, forward and backward, against the oracle."""

import numpy as np
import pytest

import normlib
import reference
from gradcheck import assert_gradient
from normlib import _kernels
from reference import INPUTS, batch_axes, ulps

# (shape, channel axis): columns and planes, whole blocks and parts of them.
LAYOUTS = [
    ((2, 1), -1),
    ((5, 3), -1),
    ((200, 70), -1),
    ((129, 64), 1),
    ((3, 2), 0),
    ((7, 300), 0),
    ((70, 1100), 1),
    ((4, 5, 3), 1),
    ((40, 3, 7, 7), 1),
    ((2, 3, 80, 80), 1),
    ((3, 4, 2, 5), 2),
]
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [k for k in INPUTS if not k.endswith("first")])
def test_training_within_four_ulp(cpu_level, n_threads, dtype, kind, rng):
    for shape, channel_axis in LAYOUTS:
        x = INPUTS[kind](rng, shape).astype(dtype)
        n = shape[channel_axis]
        gain = rng.uniform(0.5, 1.5, n).astype(dtype)
        axes = batch_axes(x, channel_axis)
        y, mean, var = normlib.batch_norm_forward(x, gain, channel_axis=channel_axis)
        expected, expected_mean, _ = reference.layer_norm(
            x, reference.along(gain, x, channel_axis), None, axes
        )
        assert ulps(y, expected, dtype) <= 4, shape
        _, expected_var, _ = reference.moments(x, axes)
        assert mean.dtype == var.dtype == np.float64
        atol = 1e-14 * float(np.abs(x - expected_mean).max())
        np.testing.assert_allclose(mean, expected_mean.ravel().astype(float), rtol=1e-15, atol=atol)
        np.testing.assert_allclose(var, expected_var.ravel().astype(float), rtol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_within_four_ulp(cpu_level, n_threads, dtype, rng):
    for shape, channel_axis in LAYOUTS:
        n = shape[channel_axis]
        mean = 10000 + rng.standard_normal(n)
        var = rng.uniform(0.5, 2, n)
        gain = rng.uniform(0.5, 1.5, n).astype(dtype)
        bias = rng.uniform(-0.1, 0.1, n).astype(dtype)
        x = (
            reference.along(mean, np.empty(shape), channel_axis) + rng.standard_normal(shape)
        ).astype(dtype)
        y = normlib.batch_norm(x, mean, var, gain, bias, channel_axis=channel_axis)
        expected = reference.batch_norm(x, mean, var, gain, bias, channel_axis)
        assert ulps(y, expected, dtype) <= 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_channels_give_exactly_the_bias(cpu_level, dtype, rng):
    for shape, channel_axis in LAYOUTS:
        values = rng.standard_normal(shape[channel_axis]) * 1e3
        x = np.broadcast_to(reference.along(values, np.empty(shape), channel_axis), shape)
        bias = rng.standard_normal(shape[channel_axis]).astype(dtype)
        y, _, _ = normlib.batch_norm_forward(x.astype(dtype), None, bias, channel_axis=channel_axis)
        expected = reference.along(bias, x, channel_axis).astype(dtype)
        np.testing.assert_array_equal(y, np.broadcast_to(expected, shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_channel(cpu_level, n_threads, dtype, bad, rng):
    for shape, channel_axis in [((90, 70), 1), ((6, 5, 9), 1)]:
        x = rng.standard_normal(shape).astype(dtype)
        clean = normlib.batch_norm_forward(x, channel_axis=channel_axis)[0]
        x[(2, 3) + (1,) * (len(shape) - 2)] = bad
        y, mean, var = normlib.batch_norm_forward(x, channel_axis=channel_axis)
        assert np.isnan(y[:, 3]).all()
        others = np.arange(shape[1]) != 3
        np.testing.assert_array_equal(y[:, others], clean[:, others])
        dx, _, _ = normlib.batch_norm_backward(
            np.ones_like(x), x, mean, var, channel_axis=channel_axis
        )
        assert np.isfinite(dx[:, others]).all()


@pytest.mark.parametrize("layout", ["columns", "planes"])
def test_extreme_channel_leaves_the_others_alone(cpu_level, layout, rng):
    """A channel that needs double has full precision, and no other channel's bits change."""
    shape = (80, 6) if layout == "columns" else (9, 6, 11)
    x = rng.standard_normal(shape).astype(np.float32)
    plain = normlib.batch_norm_forward(x, channel_axis=1, eps=0)[0]
    scaled = x.copy()
    scaled[:, 2] *= np.float32(1e35)
    scaled[:, 4] *= np.float32(1e-35)
    y, mean, var = normlib.batch_norm_forward(scaled, channel_axis=1, eps=0)
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    untouched = [0, 1, 3, 5]
    np.testing.assert_array_equal(y[:, untouched], plain[:, untouched])
    in_place = scaled.copy()
    normlib.batch_norm_forward(in_place, channel_axis=1, eps=0, out=in_place)
    np.testing.assert_array_equal(in_place, y)
    dy = rng.standard_normal(shape).astype(np.float32)
    ones = np.ones(6, np.float32)
    dx, dgain, _ = normlib.batch_norm_backward(dy, scaled, mean, var, ones, channel_axis=1, eps=0)
    _, mean1, var1 = normlib.batch_norm_forward(x, channel_axis=1, eps=0)
    dx1, dgain1, _ = normlib.batch_norm_backward(dy, x, mean1, var1, ones, channel_axis=1, eps=0)
    np.testing.assert_allclose(dgain, dgain1, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx[:, 2] * np.float32(1e35), dx1[:, 2], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(dx[:, untouched], dx1[:, untouched])


@pytest.mark.parametrize("gain", [None, np.array([2.0, 3.0])])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_differences_that_overflow(cpu_level, eps, gain):
    x = np.array([[1.7e308, 1.0], [-1.7e308, 3.0], [-1.7e308, 2.0], [1.7e308, 2.0]])
    expected = np.array([[1, -np.sqrt(2)], [-1, np.sqrt(2)], [-1, 0], [1, 0]])
    y, _, _ = normlib.batch_norm_forward(x, gain, eps=eps)
    np.testing.assert_allclose(y, expected * (1 if gain is None else gain), rtol=1e-5)
    normlib.batch_norm_forward(x.copy(), gain, eps=eps, out=x)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("value", [1e160, -1.7e308, 1e-320])
def test_constant_channel_of_any_size_is_the_bias(cpu_level, value):
    y, mean, var = normlib.batch_norm_forward(np.full((3, 2), value), None, np.array([0.5, 2]))
    np.testing.assert_array_equal(y, [[0.5, 2]] * 3)
    np.testing.assert_array_equal(mean, [value] * 2)
    np.testing.assert_array_equal(var, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_spread_whose_reciprocal_overflows(cpu_level, masked, rng):
    x = rng.uniform(1, 2, (40, 5))
    gain, bias = rng.uniform(0.5, 1.5, (2, 5))
    faint = np.ldexp(np.round(np.ldexp(x, 20)), -1070)  # the same on a coarse grid
    x = np.ldexp(faint, 1050)
    faint[:, 1] = x[:, 1]
    mask = np.arange(40) % 3 > 0 if masked else None
    expected, _, _ = normlib.batch_norm_forward(x, gain, bias, eps=0.0, mask=mask)
    y, mean, var = normlib.batch_norm_forward(faint, gain, bias, eps=0.0, mask=mask)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    assert np.isfinite(mean).all()
    assert np.isfinite(var).all()
    normlib.batch_norm_forward(faint, gain, bias, eps=0.0, mask=mask, out=faint)
    np.testing.assert_array_equal(faint, y)


@pytest.mark.parametrize("shape", [(32771, 64), (2051, 1024), (129, 16384), (33, 3, 21504)])
def test_arrays_that_leave_the_cache(cpu_level, n_threads, shape, rng):
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    gain, bias = rng.uniform(0.5, 1.5, (2, shape[1])).astype(np.float32)
    y, mean, var = normlib.batch_norm_forward(x, gain, bias, channel_axis=1)
    np.testing.assert_allclose(mean, x.mean(batch_axes(x, 1), np.float64), atol=1e-9)
    np.testing.assert_allclose(var, x.var(batch_axes(x, 1), np.float64), rtol=1e-9)
    given = normlib.batch_norm(x, mean, var, gain, bias, channel_axis=1)
    np.testing.assert_allclose(y, given, atol=1e-5)
    for rows in (slice(0, 3), slice(shape[0] // 2 - 1, shape[0] // 2 + 20), slice(-3, None)):
        part = normlib.batch_norm(x[rows], mean, var, gain, bias, channel_axis=1)
        np.testing.assert_array_equal(given[rows], part)
    dx, dgain, dbias = normlib.batch_norm_backward(dy, x, mean, var, gain, channel_axis=1)
    expected, gain_terms, bias_terms = reference.layer_norm_backward(
        dy, x, reference.along(gain, x, 1), batch_axes(x, 1)
    )
    np.testing.assert_allclose(dx, expected, atol=1e-5)
    np.testing.assert_allclose(dgain, gain_terms.sum(batch_axes(x, 1)), atol=0.05)
    np.testing.assert_allclose(dbias, bias_terms.sum(batch_axes(x, 1)), atol=0.05)


@pytest.mark.parametrize("shape", [(32771, 64), (2051, 1024)])
def test_large_arrays_with_a_channel_in_double(cpu_level, n_threads, shape, rng):
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    x[:, 3] *= np.float32(1e-35)
    y, mean, var = normlib.batch_norm_forward(x, eps=0.0)
    dx, _, _ = normlib.batch_norm_backward(dy, x, mean, var, eps=0.0)
    x[:, 3] *= np.float32(1e35)
    expected, mean, var = normlib.batch_norm_forward(x, eps=0.0)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    expected, _, _ = normlib.batch_norm_backward(dy, x, mean, var, eps=0.0)
    dx[:, 3] *= np.float32(1e-35)
    np.testing.assert_allclose(dx, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(21000, 100), (2731, 768), (90, 480, 7, 7), (50, 300, 12, 12)])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_outputs_that_start_anywhere(cpu_level, n_threads, shape, offset, rng):
    x = rng.standard_normal(shape, dtype=np.float32)
    gain, bias, mean, var = rng.uniform(0.5, 1.5, (4, shape[1]))
    var[3] = 1e-80  # a channel that needs double
    affine = gain.astype(np.float32), bias.astype(np.float32)
    memory = np.full(x.size + 64, 7, np.float32)
    start = -memory.ctypes.data // 4 % 16 + offset
    out = memory[start : start + x.size].reshape(shape)
    normlib.batch_norm(x, mean, var, *affine, channel_axis=1, out=out, eps=0.0)
    for rows in np.array_split(np.arange(shape[0]), 7):
        part = normlib.batch_norm(x[rows], mean, var, *affine, channel_axis=1, eps=0.0)
        np.testing.assert_array_equal(out[rows], part)
    assert (memory[:start] == 7).all()
    assert (memory[start + x.size :] == 7).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "channel_axis"), [((6, 3), -1), ((4, 3, 5), 1), ((3, 7), 0)])
def test_backward_against_differences(cpu_level, shape, channel_axis, masked, rng):
    x = rng.standard_normal(shape)
    n = shape[channel_axis]
    gain = rng.standard_normal(n)
    bias = rng.standard_normal(n)
    dy = rng.standard_normal(shape)
    mask = None
    if masked:
        mask = np.ones(np.delete(shape, channel_axis), bool)
        mask.flat[[1, 3]] = False
    options = {"channel_axis": channel_axis, "mask": mask}

    def loss():
        return float((dy * normlib.batch_norm_forward(x, gain, bias, **options)[0]).sum())

    _, mean, var = normlib.batch_norm_forward(x, gain, bias, **options)
    dx, dgain, dbias = normlib.batch_norm_backward(dy, x, mean, var, gain, **options)
    assert_gradient(dx, loss, x)
    assert_gradient(dgain, loss, gain)
    assert_gradient(dbias, loss, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_against_oracle(cpu_level, n_threads, dtype, rng):
    for shape, channel_axis in LAYOUTS[1:]:
        x = (100 + rng.standard_normal(shape)).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        gain = rng.uniform(0.5, 1.5, shape[channel_axis]).astype(dtype)
        axes = batch_axes(x, channel_axis)
        _, mean, var = normlib.batch_norm_forward(x, channel_axis=channel_axis)
        dx, dgain, dbias = normlib.batch_norm_backward(
            dy, x, mean, var, gain, channel_axis=channel_axis
        )
        expected, gain_terms, bias_terms = reference.layer_norm_backward(
            dy, x, reference.along(gain, x, channel_axis), axes
        )
        eps = np.finfo(dtype).eps
        rstd = 1 / np.sqrt(var.min() + 1e-5)
        assert np.abs(dx - expected).max() <= 16 * eps * rstd * np.abs(dy).max()
        assert (np.abs(dbias - bias_terms.sum(axes)) <= 4 * eps * np.abs(dy).sum(axes)).all()
        bound = 8 * eps * np.maximum(1, np.abs(gain_terms)).sum(axes)
        assert (np.abs(dgain - gain_terms.sum(axes)) <= bound).all()


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e-19, 1e19, 1e23, 1e34])
@pytest.mark.parametrize("shape", [(9, 70), (3, 6, 11)])
def test_backward_where_the_square_of_rstd_is_no_float(cpu_level, n_threads, shape, size, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    x[:, 1:] *= np.float32(size)
    dy = rng.standard_normal(shape).astype(np.float32)
    dy[:, 2] = 0
    _, mean, var = normlib.batch_norm_forward(x, channel_axis=1, eps=0)
    dx, _, _ = normlib.batch_norm_backward(dy, x, mean, var, channel_axis=1, eps=0)
    axes = batch_axes(x, 1)
    expected, _, _ = reference.layer_norm_backward(dy, x, axis=axes, eps=0)
    rstd = reference.along(1 / np.sqrt(var), x, 1)
    # Where a gradient is no float itself, it may lose what is below the least.
    least = np.finfo(np.float32).smallest_subnormal
    bound = 16 * np.finfo(np.float32).eps * rstd * np.abs(dy).max() + least
    assert (np.abs(dx - expected) <= bound).all()
    np.testing.assert_array_equal(dx[:, 2], 0)
    if len(shape) == 2:
        mask = np.arange(len(x)) != 4
        dy[~mask] = 0
        _, mean, var = normlib.batch_norm_forward(x, eps=0, mask=mask)
        dx, _, _ = normlib.batch_norm_backward(dy, x, mean, var, eps=0, mask=mask)
        expected, _, _ = reference.layer_norm_backward(dy[mask], x[mask], axis=axes, eps=0)
        assert (np.abs(dx[mask] - expected) <= 2 * bound).all()


@pytest.mark.parametrize("mean", [1e4, 1e8, 1e12])
@pytest.mark.parametrize("masked", [False, True])
def test_float64_backward_where_the_mean_dwarfs_the_spread(cpu_level, mean, masked, rng):
    """A float64 mean has no room for what the deviations need."""
    x = mean + rng.standard_normal((64, 5))
    dy = rng.standard_normal((64, 5))
    mask = np.ones(64, bool) if masked else None
    gain = np.ones(5)
    _, mean_x, var = normlib.batch_norm_forward(x, mask=mask)
    dx, dgain, _ = normlib.batch_norm_backward(dy, x, mean_x, var, gain, mask=mask)
    expected, gain_terms, _ = reference.layer_norm_backward(dy, x, gain, (0,))
    np.testing.assert_allclose(dx, expected.astype(float), rtol=0, atol=2e-14)
    np.testing.assert_allclose(dgain, gain_terms.sum(0).astype(float), rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [False, True])
def test_float64_backward_takes_the_mean_that_it_is_given(masked, rng):
    x = 1e8 + rng.standard_normal((64, 5))
    dy = rng.standard_normal((64, 5))
    mask = np.ones(64, bool) if masked else None
    _, mean, var = normlib.batch_norm_forward(x, mask=mask)
    mean = np.nextafter(mean, np.inf)
    _, dgain, _ = normlib.batch_norm_backward(dy, x, mean, var, np.ones(5), eps=0, mask=mask)
    expected = (dy * (x - mean) / np.sqrt(var)).sum(axis=0)
    np.testing.assert_allclose(dgain, expected, rtol=0, atol=1e-12)


def test_scratch_stays_below_the_input():
    for shape in [(10**6, 1, 1), (10**6, 3, 1), (10**5, 2, 5), (1000, 100, 1), (10**5, 1, 2)]:
        scratch = _kernels.batch_moments.scratch_shape(*shape)
        assert np.prod(scratch) * 8 <= np.prod(shape) * 4
    for shape in [(10**6, 1), (10**6, 3), (10**4, 100)]:
        scratch = _kernels.layer_norm_backward.scratch_shape(*shape)
        assert np.prod(scratch) * 8 <= np.prod(shape) * 4


def test_mask_leaves_rows_out_of_the_statistics(cpu_level, rng):
    x = rng.standard_normal((9, 4, 6)).astype(np.float32)
    mask = rng.random((9, 6)) < 0.6
    y, mean, var = normlib.batch_norm_forward(x, channel_axis=1, mask=mask)
    expected_mean, expected_var = reference.masked_moments(x, mask, 1)
    np.testing.assert_allclose(mean, expected_mean.astype(float), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(var, expected_var.astype(float), rtol=1e-6)
    expected = reference.batch_norm(x, mean, var, channel_axis=1)
    np.testing.assert_allclose(y, expected.astype(float), rtol=1e-5, atol=1e-6)


def test_full_mask_is_no_mask(rng):
    x = rng.standard_normal((30, 5)).astype(np.float32)
    plain = normlib.batch_norm_forward(x)
    masked = normlib.batch_norm_forward(x, mask=np.ones(30, bool))
    for a, b in zip(plain, masked, strict=True):
        np.testing.assert_array_equal(a, b)


def test_masked_rows_may_hold_anything(rng):
    x = rng.standard_normal((8, 3)).astype(np.float32)
    mask = np.arange(8) < 5
    x[6] = np.nan
    y, mean, _ = normlib.batch_norm_forward(x, mask=mask)
    assert np.isfinite(mean).all()
    assert np.isfinite(y[:6]).all()


def test_too_few_values_are_refused(rng):
    x = rng.standard_normal((1, 3))
    with pytest.raises(ValueError, match="at least two values per channel; got 1 in x"):
        normlib.batch_norm_forward(x)
    with pytest.raises(ValueError, match="at least two values per channel; got 0"):
        normlib.batch_norm_forward(np.empty((0, 3)))
    x = rng.standard_normal((4, 3))
    with pytest.raises(ValueError, match="got 1 under the mask"):
        normlib.batch_norm_forward(x, mask=np.arange(4) == 2)
    # One row suffices where a channel has more values than one.
    normlib.batch_norm_forward(rng.standard_normal((1, 3, 2)), channel_axis=1)


@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("rows", [300, 70000])
def test_narrow_rows_have_the_same_bits_beside_other_channels(
    cpu_level, n_threads, channels, rows, rng
):
    """Whole rows of a few vectors have a loop of their own, in the cache and past it."""
    x = rng.standard_normal((rows, channels + 8), dtype=np.float32)
    gain, bias, mean = rng.standard_normal((3, channels + 8), dtype=np.float32)
    var = rng.uniform(0.5, 2, channels + 8)
    y = normlib.batch_norm(x, mean, var, gain, bias)
    narrow = [a[..., :channels].copy() for a in (x, mean, var, gain, bias)]
    np.testing.assert_array_equal(normlib.batch_norm(*narrow), y[:, :channels])
