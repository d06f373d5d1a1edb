"""Group norm with channels last, which has kernels of its own."""

import numpy as np
import pytest

import normlib
from reference import INPUTS, batch_axes, group_norm, group_norm_backward

DTYPES = [np.float32, np.float64]


def parameters(rng, channels, dtype):
    gain = rng.uniform(0.5, 1.5, channels).astype(dtype)
    return gain, rng.standard_normal(channels).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_large_samples_with_channels_last(cpu_level, n_threads, dtype, kind, groups, rng):
    """They are not transposed. Nor does a sample's way of going depend on the others."""
    x = INPUTS[kind](rng, (3, 50, 30, 6)).astype(dtype)
    gain, bias = parameters(rng, 6, dtype)
    for affine in [(None, None), (gain, bias)]:
        y, mean, rstd = normlib.group_norm_forward(x, groups, *affine, channel_axis=-1)
        expected, expected_mean, expected_rstd = group_norm(x, groups, *affine, channel_axis=-1)
        size = np.maximum(
            np.abs(expected), np.abs(group_norm(x, groups, affine[0], channel_axis=-1)[0])
        )
        error = np.abs(y - expected) / (np.finfo(dtype).eps * np.maximum(1, size))
        assert error.max() <= 4
        atol = 1e-14 * float(np.abs(x).max())
        np.testing.assert_allclose(mean, expected_mean.astype(float), rtol=1e-15, atol=atol)
        np.testing.assert_allclose(rstd, expected_rstd.astype(float), rtol=1e-10)
        for out in (np.empty_like(x), np.empty(x.shape[::-1], dtype).T, x.copy()):
            given = out if out.base is None and (out == x).all() else x
            result = normlib.group_norm(given, groups, *affine, channel_axis=-1, out=out)
            assert result is out
            np.testing.assert_array_equal(out, y)
    for rows in (slice(None, None, 2), slice(None, None, -1), [2, 0]):
        some = normlib.group_norm(x[rows], groups, *affine, channel_axis=-1)
        np.testing.assert_array_equal(some, y[rows])
    reordered = np.asfortranarray(x)
    np.testing.assert_array_equal(
        normlib.group_norm(reordered, groups, *affine, channel_axis=-1), y
    )
    x[1, 3, 3, 0], x[2, 0, 0, 5] = np.nan, np.inf
    with_nan = normlib.group_norm(x, groups, *affine, channel_axis=-1)
    np.testing.assert_array_equal(with_nan[0], y[0])
    assert np.isnan(with_nan[1, ..., : 6 // groups]).all()
    assert np.isfinite(with_nan[1, ..., 6 // groups :]).all()
    assert np.isnan(with_nan[2, ..., -6 // groups :]).all()


# (shape, groups): several positions side by side, cut; whole vectors; blocks of rows; few positions
LAST = [
    ((3, 50, 30, 6), 3),
    ((5, 3, 3, 5), 1),
    ((3, 5, 7, 3), 3),
    ((2, 28, 28, 256), 32),
    ((3, 9, 130), 13),
    ((3, 40, 40, 64), 32),
    ((300, 2, 30), 5),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("shape", "groups"), LAST)
def test_channels_last_within_four_ulp(cpu_level, n_threads, dtype, kind, shape, groups, rng):
    x = INPUTS[kind](rng, shape).astype(dtype)
    gain, bias = parameters(rng, shape[-1], dtype)
    y, mean, rstd = normlib.group_norm_forward(x, groups, gain, bias, channel_axis=-1)
    expected, expected_mean, expected_rstd = group_norm(x, groups, gain, bias, channel_axis=-1)
    size = np.abs(group_norm(x, groups, gain, channel_axis=-1)[0])
    error = np.abs(y - expected) / np.maximum(1, np.maximum(np.abs(expected), size))
    assert error.max() <= 4 * np.finfo(dtype).eps
    atol = 1e-14 * float(np.abs(x).max())
    np.testing.assert_allclose(mean, expected_mean.astype(float), rtol=1e-15, atol=atol)
    np.testing.assert_allclose(rstd, expected_rstd.astype(float), rtol=1e-10)
    np.testing.assert_array_equal(normlib.group_norm(x, groups, gain, bias, channel_axis=-1), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "mean dwarfs spread", "shifted integers", "huge"])
@pytest.mark.parametrize(("shape", "groups"), LAST)
def test_gradients_with_channels_last(cpu_level, n_threads, dtype, kind, shape, groups, rng):
    x = INPUTS[kind](rng, shape).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    eps = np.finfo(dtype).eps
    for gain in (parameters(rng, shape[-1], dtype)[0], None):
        _, mean, rstd = normlib.group_norm_forward(x, groups, gain, channel_axis=-1)
        dx, dgain, dbias = normlib.group_norm_backward(
            dy, x, groups, mean, rstd, gain, channel_axis=-1
        )
        expected, gain_terms, bias_terms = group_norm_backward(dy, x, groups, gain, -1)
        axes = batch_axes(x, -1)
        assert np.abs(dx - expected).max() <= 12 * eps * float(rstd.max()) * np.abs(dy).max()
        assert (
            np.abs(dbias - bias_terms.sum(axes)) <= 4 * eps * np.abs(bias_terms).sum(axes)
        ).all()
        if gain is None:
            assert dgain is None
        else:
            bound = 8 * eps * np.abs(gain_terms).sum(axes)
            assert (np.abs(dgain - gain_terms.sum(axes)) <= bound).all()
        some = [a[::2] for a in (dy, x, mean, rstd)]
        few, _, _ = normlib.group_norm_backward(
            some[0], some[1], groups, *some[2:], gain, channel_axis=-1
        )
        np.testing.assert_array_equal(few, dx[::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), LAST)
def test_channels_last_have_the_same_bits_with_any_threads(dtype, shape, groups, rng):
    x, dy = (3 + rng.standard_normal((2, *shape))).astype(dtype)
    gain, bias = parameters(rng, shape[-1], dtype)
    before = normlib.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3, 5):
            normlib.set_num_threads(n_threads)
            y, *kept = normlib.group_norm_forward(x, groups, gain, bias, channel_axis=-1)
            gradients = normlib.group_norm_backward(dy, x, groups, *kept, gain, channel_axis=-1)
            results.append((y, *kept, *gradients))
    finally:
        normlib.set_num_threads(before)
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 10, 10, 4), (8, 3, 8)])
def test_nearly_constant_gradient_with_channels_last(cpu_level, dtype, shape, rng):
    x = rng.standard_normal(shape).astype(dtype)
    dy = (1e4 + rng.standard_normal(shape)).astype(dtype)
    for gain in (None, np.ones(shape[-1], dtype)):
        _, mean, rstd = normlib.group_norm_forward(x, 2, channel_axis=-1)
        dx, _, _ = normlib.group_norm_backward(dy, x, 2, mean, rstd, gain, channel_axis=-1)
        expected, _, _ = group_norm_backward(dy, x, 2, channel_axis=-1)
        assert np.abs(dx - expected).max() < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (np.float32, [1e-43, 1e-40, 1e-20, 1e18, 1e20, 3e38]),
        (np.float64, [1e-305, 1e-300, 1e200, 1e307]),
    ],
)
def test_extreme_groups_with_channels_last(cpu_level, dtype, scales, rng):
    """They are done in double; the other groups of the sample have the bits that they had."""
    clean = rng.uniform(-1, 1, (3, 5, 4, 6)).astype(dtype)
    dy = rng.standard_normal(clean.shape).astype(dtype)
    gain, bias = parameters(rng, 6, dtype)

    def results(x):
        y, *kept = normlib.group_norm_forward(x, 3, gain, bias, channel_axis=-1, eps=0)
        return y, normlib.group_norm_backward(dy, x, 3, *kept, gain, channel_axis=-1)

    clean_y, (clean_dx, clean_dgain, _) = results(clean)
    for scale in scales:
        x = clean.copy()
        x[1, ..., 2:4] = (x[1, ..., 2:4] * scale).astype(dtype)
        y, (dx, dgain, _) = results(x)
        expected, _, _ = group_norm(x, 3, gain, bias, -1, eps=0)
        np.testing.assert_allclose(y, expected.astype(float), rtol=0, atol=16 * np.finfo(dtype).eps)
        expected_dx, summands, _ = group_norm_backward(dy, x, 3, gain, -1, eps=0)
        with np.errstate(over="ignore"):
            expected_dx = expected_dx.astype(dtype)
        actual, wanted = dx[1, ..., 2:4], expected_dx[1, ..., 2:4]
        finite = np.isfinite(wanted)
        largest = np.abs(wanted[finite]).max(initial=0)
        np.testing.assert_allclose(actual[finite], wanted[finite], rtol=1e-4, atol=1e-5 * largest)
        np.testing.assert_allclose(
            dgain, summands.sum((0, 1, 2)).astype(float), rtol=1e-4, atol=1e-4
        )
        others = np.ones(x.shape, bool)
        others[1, ..., 2:4] = False
        np.testing.assert_array_equal(y[others], clean_y[others])
        np.testing.assert_array_equal(dx[others], clean_dx[others])
        np.testing.assert_array_equal(dgain[[0, 1, 4, 5]], clean_dgain[[0, 1, 4, 5]])
        same = x.copy()
        normlib.group_norm(same, 3, gain, bias, channel_axis=-1, eps=0, out=same)
        np.testing.assert_array_equal(same, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_stay_in_their_group_with_channels_last(cpu_level, n_threads, dtype, rng):
    x, dy = rng.standard_normal((2, 9, 5, 4, 6)).astype(dtype)
    gain, bias = parameters(rng, 6, dtype)

    def results(x):
        y, *kept = normlib.group_norm_forward(x, 3, gain, bias, channel_axis=-1)
        return y, *normlib.group_norm_backward(dy, x, 3, *kept, gain, channel_axis=-1)

    clean_y, clean_dx, clean_dgain, _ = results(x)
    x[2, 0, 0, 1], x[5, 4, 3, 2] = np.nan, np.inf
    bad = np.zeros(x.shape, bool)
    bad[2, ..., :2] = bad[5, ..., 2:4] = True
    y, dx, dgain, dbias = results(x)
    assert np.isnan(y[bad]).all()
    np.testing.assert_array_equal(y[~bad], clean_y[~bad])
    np.testing.assert_array_equal(dx[~bad], clean_dx[~bad])
    np.testing.assert_array_equal(dgain[4:], clean_dgain[4:])
    assert np.isfinite(dbias).all()


def test_large_outputs_with_channels_last_have_the_same_bits(cpu_level, rng):
    """They are stored past the cache, if their rows are whole vectors."""
    shape = (3, 100, 120, 64)
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    gain, bias = parameters(rng, 64, np.float32)
    y, mean, rstd = normlib.group_norm_forward(x, 8, gain, bias, channel_axis=-1)
    dx, _, _ = normlib.group_norm_backward(dy, x, 8, mean, rstd, gain, channel_axis=-1)
    one = normlib.group_norm(x[1:2], 8, gain, bias, channel_axis=-1)
    np.testing.assert_array_equal(one[0], y[1])
    shifted = np.empty(x.size + 1, np.float32)[1:].reshape(shape)
    normlib.group_norm(x, 8, gain, bias, channel_axis=-1, out=shifted)
    np.testing.assert_array_equal(shifted, y)
    few, _, _ = normlib.group_norm_backward(
        dy[1:2], x[1:2], 8, mean[1:2], rstd[1:2], gain, channel_axis=-1
    )
    np.testing.assert_array_equal(few[0], dx[1])
