"""group_norm and instance_norm, forward and backward, against the oracle."""

import numpy as np
import pytest

import normlib
from gradcheck import assert_gradient
from normlib.errors import ParameterError, ShapeError
from reference import INPUTS, batch_axes, group_norm, group_norm_backward, layer_norm_backward

# (shape, groups): by rows, by elements of short planes, by planes
SHAPES = [
    ((3, 4), 2),
    ((2, 12), 1),
    ((70, 24), 3),
    ((5, 300), 4),
    ((2, 6, 1), 6),
    ((3, 6, 5), 3),
    ((2, 4, 31), 4),
    ((2, 4, 32), 2),
    ((3, 4, 7, 9), 2),
    ((2, 6, 16, 16), 3),
    ((1, 2, 10000), 1),
]
DTYPES = [np.float32, np.float64]


def parameters(rng, channels, dtype):
    gain = rng.uniform(0.5, 1.5, channels).astype(dtype)
    return gain, rng.standard_normal(channels).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_forward_within_four_ulp(cpu_level, n_threads, dtype, kind, rng):
    for shape, groups in SHAPES:
        x = INPUTS[kind](rng, shape).astype(dtype)
        gain, bias = parameters(rng, shape[1], dtype)
        for affine in [(None, None), (gain, None), (None, bias), (gain, bias)]:
            y, mean, rstd = normlib.group_norm_forward(x, groups, *affine)
            expected, expected_mean, expected_rstd = group_norm(x, groups, *affine)
            # Before the bias, so that its cancellation is not charged to the kernel.
            size = np.maximum(np.abs(expected), np.abs(group_norm(x, groups, affine[0])[0]))
            error = np.abs(y - expected) / (np.finfo(dtype).eps * np.maximum(1, size))
            assert error.max() <= 4, (shape, affine)
            assert mean.dtype == rstd.dtype == np.float64
            assert mean.shape == rstd.shape == (shape[0], groups)
            atol = 1e-14 * float(np.abs(x).max())
            np.testing.assert_allclose(mean, expected_mean.astype(float), rtol=1e-15, atol=atol)
            np.testing.assert_allclose(rstd, expected_rstd.astype(float), rtol=1e-10)
            np.testing.assert_array_equal(normlib.group_norm(x, groups, *affine), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "mean dwarfs spread", "shifted integers", "huge"])
def test_backward_against_oracle(cpu_level, n_threads, dtype, kind, rng):
    for shape, groups in SHAPES:
        if np.prod(shape[1:]) // groups < 3:
            continue
        x = INPUTS[kind](rng, shape).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        gain, _ = parameters(rng, shape[1], dtype)
        for g in (gain, None):
            _, mean, rstd = normlib.group_norm_forward(x, groups, g)
            dx, dgain, dbias = normlib.group_norm_backward(dy, x, groups, mean, rstd, g)
            expected, gain_terms, bias_terms = group_norm_backward(dy, x, groups, g)
            axes = batch_axes(x, 1)
            eps = np.finfo(dtype).eps
            bound = 8 * eps * float(rstd.max()) * np.abs(dy).max() * 1.5
            assert np.abs(dx - expected).max() <= bound, shape
            bound = 4 * eps * np.abs(bias_terms).sum(axes)
            assert (np.abs(dbias - bias_terms.sum(axes)) <= bound).all()
            if g is None:
                assert dgain is None
            else:
                bound = 8 * eps * np.maximum(1, np.abs(gain_terms)).sum(axes)
                assert (np.abs(dgain - gain_terms.sum(axes)) <= bound).all()


@pytest.mark.parametrize(
    ("shape", "axis", "groups"),
    [((3, 6), 1, 2), ((2, 4, 3), 1, 2), ((2, 3, 4), -1, 2), ((2, 2, 4, 20), 2, 2),
     ((2, 2, 40), 1, 1), ((2, 20, 2, 2), -1, 1), ((2, 3, 5, 6), -1, 2)],
)  # fmt: skip
def test_backward_against_differences(cpu_level, shape, axis, groups, rng):
    x, dy = rng.standard_normal((2, *shape))
    gain, bias = rng.standard_normal((2, shape[axis]))

    def loss():
        y = normlib.group_norm(x, groups, gain, bias, channel_axis=axis)
        return float((dy * y).sum())

    _, mean, rstd = normlib.group_norm_forward(x, groups, gain, bias, channel_axis=axis)
    dx, dgain, dbias = normlib.group_norm_backward(
        dy, x, groups, mean, rstd, gain, channel_axis=axis
    )
    assert_gradient(dx, loss, x)
    assert_gradient(dgain, loss, gain)
    assert_gradient(dbias, loss, bias)


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (np.float32, [1e-43, 1e-40, 1e-20, 1e18, 1e20, 3e38]),
        (np.float64, [1e-305, 1e-300, 1e200, 1e307]),
    ],
)
@pytest.mark.parametrize(("shape", "groups"), [((3, 40), 2), ((3, 4, 5), 2), ((3, 4, 40), 2)])
def test_extreme_groups_without_eps(cpu_level, dtype, scales, shape, groups, rng):
    for scale in scales:
        x = (scale * rng.uniform(-1, 1, shape)).astype(dtype)
        gain, bias = parameters(rng, shape[1], dtype)
        y, mean, rstd = normlib.group_norm_forward(x, groups, gain, bias, eps=0)
        expected, _, _ = group_norm(x, groups, gain, bias, eps=0)
        np.testing.assert_allclose(y, expected.astype(float), rtol=0, atol=16 * np.finfo(dtype).eps)
        dy = rng.standard_normal(shape).astype(dtype)
        dx, dgain, _ = normlib.group_norm_backward(dy, x, groups, mean, rstd, gain)
        expected_dx, summands, _ = group_norm_backward(dy, x, groups, gain, eps=0)
        with np.errstate(over="ignore"):
            expected_dx = expected_dx.astype(dtype)
        finite = np.isfinite(expected_dx)
        largest = np.abs(expected_dx[finite]).max(initial=0)
        np.testing.assert_allclose(dx[finite], expected_dx[finite], rtol=1e-4, atol=1e-5 * largest)
        total = summands.sum(batch_axes(x, 1)).astype(float)
        np.testing.assert_allclose(dgain, total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gains(cpu_level, dtype, rng):
    """The product of gain and rstd may be beyond the range of a plane's factor."""
    x = (rng.standard_normal((2, 3, 50)) * 1e20).astype(dtype)
    gain = np.array([1e-25, 1, 1e18], dtype)
    y = normlib.group_norm(x, 3, gain, eps=0)
    expected = group_norm(x, 3, gain, eps=0)[0].astype(float)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((9, 24), 3), ((9, 6, 5), 3), ((9, 6, 40), 3)])
def test_nan_and_inf_stay_in_their_group(cpu_level, n_threads, dtype, shape, groups, rng):
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    gain, bias = parameters(rng, shape[1], dtype)
    clean, mean, rstd = normlib.group_norm_forward(x, groups, gain, bias)
    clean_dx, clean_dgain, _ = normlib.group_norm_backward(dy, x, groups, mean, rstd, gain)
    rows = x.reshape(9, groups, -1)
    rows[2, 0, 3], rows[5, 1, 1] = np.nan, np.inf
    y, mean, rstd = normlib.group_norm_forward(x, groups, gain, bias)
    dx, dgain, dbias = normlib.group_norm_backward(dy, x, groups, mean, rstd, gain)
    bad = np.zeros((9, groups), bool)
    bad[2, 0] = bad[5, 1] = True
    assert np.isnan(y.reshape(rows.shape)[bad]).all()
    for actual, expected in [(y, clean), (dx, clean_dx)]:
        good = (a.reshape(rows.shape)[~bad] for a in (actual, expected))
        np.testing.assert_array_equal(*good)
    third = slice(2 * shape[1] // 3, None)  # the channels of the group that is always good
    np.testing.assert_array_equal(dgain[third], clean_dgain[third])
    assert np.isfinite(dbias).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((8, 300), 2), ((8, 4, 100), 2)])
def test_nearly_constant_gradient_keeps_its_digits(cpu_level, dtype, shape, groups, rng):
    x = rng.standard_normal(shape).astype(dtype)
    dy = (1e4 + rng.standard_normal(shape)).astype(dtype)
    for gain in (None, np.ones(shape[1], dtype)):
        _, mean, rstd = normlib.group_norm_forward(x, groups)
        dx, _, _ = normlib.group_norm_backward(dy, x, groups, mean, rstd, gain)
        expected, _, _ = group_norm_backward(dy, x, groups)
        assert np.abs(dx - expected).max() < 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("mean", [1e4, 1e8, 1e12])
@pytest.mark.parametrize("shape", [(8, 64), (8, 2, 64)])
def test_float64_backward_where_the_mean_dwarfs_the_spread(cpu_level, mean, shape, rng):
    x = mean + rng.standard_normal(shape)
    dy = rng.standard_normal(shape)
    _, mean, rstd = normlib.group_norm_forward(x, 2)
    dx, _, _ = normlib.group_norm_backward(dy, x, 2, mean, rstd)
    rows = (8, 2, -1)
    expected, _, _ = layer_norm_backward(dy.reshape(rows), x.reshape(rows))
    np.testing.assert_allclose(dx.reshape(rows), expected.astype(float), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_group_of_rows_is_layer_norm(cpu_level, dtype, rng):
    x = rng.standard_normal((7, 300)).astype(dtype)
    gain, bias = parameters(rng, 300, dtype)
    np.testing.assert_array_equal(
        normlib.group_norm(x, 1, gain, bias), normlib.layer_norm(x, gain, bias)
    )


@pytest.mark.parametrize("shape", [(5, 3, 4, 5), (5, 3, 50), (5, 3, 2)])
def test_instance_norm_is_group_norm_of_single_channels(cpu_level, shape, rng):
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    gain, bias = parameters(rng, 3, np.float32)
    y, mean, rstd = normlib.instance_norm_forward(x, gain, bias)
    expected = normlib.group_norm_forward(x, 3, gain, bias)
    for a, b in zip((y, mean, rstd), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(normlib.instance_norm(x, gain, bias), y)
    gradients = normlib.instance_norm_backward(dy, x, mean, rstd, gain)
    expected = normlib.group_norm_backward(dy, x, 3, mean, rstd, gain)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 6), -1), ((3, 7, 9, 8), -1), ((3, 7, 8, 9), 2)]
)
@pytest.mark.parametrize("groups", [1, 2, None])
def test_channels_anywhere(cpu_level, shape, axis, groups, rng):
    x, dy = (3 + rng.standard_normal((2, *shape))).astype(np.float32)
    gain, bias = parameters(rng, shape[axis], np.float32)
    given = () if groups is None else (groups,)
    name = "instance" if groups is None else "group"
    forward = getattr(normlib, f"{name}_norm_forward")
    backward = getattr(normlib, f"{name}_norm_backward")
    y, mean, rstd = forward(x, *given, gain, bias, channel_axis=axis)
    groups = groups or shape[axis]
    expected, expected_mean, expected_rstd = group_norm(x, groups, gain, bias, axis)
    np.testing.assert_allclose(y, expected.astype(float), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(mean, expected_mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(rstd, expected_rstd.astype(float), rtol=1e-12)
    assert y.flags.c_contiguous
    out = np.empty(shape[::-1], np.float32).T
    plain = getattr(normlib, f"{name}_norm")
    assert plain(x, *given, gain, bias, channel_axis=axis, out=out) is out
    np.testing.assert_array_equal(out, y)
    dx, dgain, dbias = backward(dy, x, *given, mean, rstd, gain, channel_axis=axis)
    expected, gain_terms, bias_terms = group_norm_backward(dy, x, groups, gain, axis)
    axes = batch_axes(x, axis)
    np.testing.assert_allclose(dx, expected.astype(float), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dgain, gain_terms.sum(axes).astype(float), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dbias, bias_terms.sum(axes).astype(float), rtol=1e-5)
    assert dx.flags.c_contiguous


def test_what_does_not_fit_is_refused():
    x = np.ones((2, 6, 3))
    for groups, message in [(4, "must divide the 6 channels of axis 1 of x; got 4"), (7, "got 7")]:
        with pytest.raises(ShapeError, match=message):
            normlib.group_norm(x, groups)
    for groups in (0, -1, 2.0, "2", True, None):
        with pytest.raises(ParameterError, match="groups must be an integer of at least 1"):
            normlib.group_norm(x, groups)
    for function in (lambda x, **kw: normlib.group_norm(x, 2, **kw), normlib.instance_norm):
        with pytest.raises(ShapeError, match="must not be the first axis of x"):
            function(x, channel_axis=0)
        with pytest.raises(ShapeError, match=r"Take one sample as x\[None\]"):
            function(np.ones(6))
        with pytest.raises(ShapeError, match="channel_axis must be from -3 to 2"):
            function(x, channel_axis=3)
        with pytest.raises(ShapeError, match=r"gain must have shape \(6,\) to match channel axis"):
            function(x, gain=np.ones(3))
    with pytest.raises(ShapeError, match="at least two values per channel; got 1"):
        normlib.instance_norm(np.ones((2, 6)))
    with pytest.raises(ShapeError, match="at least two values per channel; got 1"):
        normlib.instance_norm_backward(np.ones((2, 6)), np.ones((2, 6)), 1, 1)
    with pytest.raises(ShapeError, match=r"mean must have shape \(2, 3\)"):
        normlib.group_norm_backward(x, x, 3, np.ones((2, 6)), np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(0, 6, 3), (2, 6, 0), (2, 0, 3), (0, 6)])
def test_empty_arrays(shape):
    x = np.empty(shape, np.float32)
    gain = np.ones(shape[1], np.float32)
    y, mean, rstd = normlib.group_norm_forward(x, 2, gain, gain)
    assert y.shape == shape
    groups = 2 if shape[1] else 0
    assert mean.shape == rstd.shape == (shape[0], groups)
    assert np.isnan(mean).all()
    dx, dgain, dbias = normlib.group_norm_backward(x, x, 2, mean, rstd, gain)
    assert dx.shape == shape
    assert (dgain == 0).all()
    assert (dbias == 0).all()
    if len(shape) > 2:
        y, mean, rstd = normlib.instance_norm_forward(x)
        assert mean.shape == shape[:2]
        dx, dgain, _ = normlib.instance_norm_backward(x, x, mean, rstd)
        assert dx.shape == shape
        assert dgain is None


@pytest.mark.parametrize("shape", [(32, 1, 2, 65536), (2048, 1024)])
def test_outputs_that_leave_the_cache_have_the_same_bits(cpu_level, shape, rng):
    """Large outputs are stored past the cache, if their rows start cache lines."""
    x = rng.standard_normal(shape).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    gain, bias = parameters(rng, shape[1], np.float32)
    y, mean, rstd = normlib.group_norm_forward(x, 1, gain, bias)
    some = slice(5, 8)
    np.testing.assert_array_equal(y[some], normlib.group_norm(x[some], 1, gain, bias))
    shifted = np.empty(x.size + 1, np.float32)[1:].reshape(shape)
    np.testing.assert_array_equal(normlib.group_norm(x, 1, gain, bias, out=shifted), y)
    dx, _, _ = normlib.group_norm_backward(dy, x, 1, mean, rstd, gain)
    few, _, _ = normlib.group_norm_backward(dy[some], x[some], 1, mean[some], rstd[some], gain)
    np.testing.assert_array_equal(dx[some], few)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1, 2, 5, 15, 16, 24, 191])
@pytest.mark.parametrize("kind", INPUTS)
def test_groups_of_few_features(cpu_level, n_threads, dtype, features, kind, rng):
    """Some are taken 16 at a time, and have the bits that each has alone."""
    x = INPUTS[kind](rng, (37, 3 * features)).astype(dtype)
    gain, bias = parameters(rng, 3 * features, dtype)
    y = normlib.group_norm(x, 3, gain, bias)
    expected = group_norm(x, 3, gain, bias)[0]
    size = np.maximum(np.abs(expected), np.abs(group_norm(x, 3, gain)[0]))
    error = np.abs(y - expected) / (np.finfo(dtype).eps * np.maximum(1, size))
    assert error.max() <= 4
    np.testing.assert_array_equal(normlib.group_norm_forward(x, 3, gain, bias)[0], y)
    for row in (0, 5, 36):
        np.testing.assert_array_equal(
            normlib.group_norm(x[row : row + 1], 3, gain, bias)[0], y[row]
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_nan_inf_and_overflow_are_silent(dtype, rng):
    x = rng.standard_normal((1, 2, 2)).astype(dtype)
    gain = np.ones(2, dtype)
    largest = np.finfo(dtype).max
    with np.errstate(all="raise"):
        _, mean, rstd = normlib.group_norm_forward(x, 1, gain)
        dy = np.array([[[np.inf, -np.inf], [largest, largest]]], dtype)
        _, _, dbias = normlib.group_norm_backward(dy, x, 1, mean, rstd, gain)
    np.testing.assert_array_equal(dbias, np.array([np.nan, np.inf], dtype))


@pytest.mark.parametrize("inner", [32, 50, 64, 130, 784])
@pytest.mark.parametrize("channels", [1, 3, 13, 32])
def test_planes_have_the_same_gradient_beside_any_others(
    cpu_level, n_threads, channels, inner, rng
):
    """Some are taken together, and each by itself where one of those is extreme."""
    x, dy = (3 + rng.standard_normal((2, 5, channels, inner))).astype(np.float32)
    gain = rng.uniform(0.5, 1.5, channels).astype(np.float32)

    def gradients(x, dy):
        _, mean, rstd = normlib.instance_norm_forward(x, eps=0)
        return normlib.instance_norm_backward(dy, x, mean, rstd, gain)

    dx, dgain, dbias = gradients(x, dy)
    expected, gain_terms, bias_terms = group_norm_backward(dy, x, channels, gain, eps=0)
    np.testing.assert_allclose(dx, expected.astype(float), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dgain, gain_terms.sum((0, 2)).astype(float), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dbias, bias_terms.sum((0, 2)).astype(float), rtol=1e-5)
    others = np.ones((5, channels), bool)
    for sample, channel, values in [
        (0, 0, 1e-33 * rng.standard_normal(inner)),
        (1, channels // 2, np.full(inner, np.nan)),
        (2, channels - 1, np.full(inner, 7)),
        (3, 0, np.geomspace(1e-30, 1e38, inner)),
    ]:
        x[sample, channel] = values
        others[sample, channel] = False
    dy[4, 0] = np.inf
    others[4, 0] = False
    with np.errstate(all="ignore"):
        changed, _, _ = gradients(x, dy)
    np.testing.assert_array_equal(changed[others], dx[others])
    for one in range(5):
        with np.errstate(all="ignore"):
            alone, _, _ = gradients(x[one : one + 1], dy[one : one + 1])
        np.testing.assert_array_equal(alone[0], changed[one])
    assert np.isnan(changed[1, channels // 2]).all()


@pytest.mark.parametrize("shape", [(12, 32, 784), (140, 32, 64)])
def test_planes_of_large_arrays_have_the_same_gradient_as_alone(cpu_level, n_threads, shape, rng):
    """Of arrays beyond the cache next to a core fewer are taken together."""
    x, dy = (3 + rng.standard_normal((2, *shape))).astype(np.float32)
    _, mean, rstd = normlib.instance_norm_forward(x)
    dx, _, _ = normlib.instance_norm_backward(dy, x, mean, rstd)
    for one in (0, shape[0] - 1):
        part = slice(one, one + 1)
        alone, _, _ = normlib.instance_norm_backward(dy[part], x[part], mean[part], rstd[part])
        np.testing.assert_array_equal(dx[part], alone)
