"""add_layer_norm and add_rms_norm: the bits of the sum's normalization, and their gradients."""

import numpy as np
import pytest

import normlib
from gradcheck import assert_gradient
from normlib.errors import DTypeError, ParameterError, ShapeError

SHAPES = [(1, 1), (5, 7), (9, 33), (17, 64), (13, 768), (2, 5000)]
DTYPES = [np.float32, np.float64]


def both(x, residual, gain=None, bias=None, **config):
    """Pairs of (y, total, *statistics), fused and not."""
    total = x + residual
    yield (
        normlib.add_layer_norm_forward(x, residual, gain, bias, **config),
        normlib.add_layer_norm(x, residual, gain, bias, **config),
        normlib.layer_norm_forward(total, gain, bias, **config),
    )
    yield (
        normlib.add_rms_norm_forward(x, residual, gain, **config),
        normlib.add_rms_norm(x, residual, gain, **config),
        normlib.rms_norm_forward(total, gain, **config),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_those_of_the_sum(cpu_level, n_threads, dtype, rng):
    for shape in SHAPES:
        x, residual = rng.standard_normal((2, *shape)).astype(dtype)
        gain, bias = rng.standard_normal((2, shape[1])).astype(dtype)
        for affine in [(None, None), (gain, None), (None, bias), (gain, bias)]:
            for fused, short, (y, *statistics) in both(x, residual, *affine):
                expected = [y, x + residual, *statistics]
                for a, b in zip(fused, expected, strict=True):
                    np.testing.assert_array_equal(a, b)
                for a, b in zip(short, expected[:2], strict=True):
                    np.testing.assert_array_equal(a, b)
                    assert a.ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [768, 4096, 8192])
def test_bits_past_the_cache(cpu_level, dtype, features, rng):
    shape = ((1 << 21) // features + 3, features)
    x, residual = rng.standard_normal((2, *shape)).astype(dtype)
    shifted = [np.empty(x.size + 1, dtype)[1:].reshape(shape) for _ in range(2)]
    for fused, short, (y, *_) in both(x, residual):
        for pair in (fused[:2], short):
            np.testing.assert_array_equal(pair[0], y)
            np.testing.assert_array_equal(pair[1], x + residual)
    normlib.add_rms_norm(x, residual, out=tuple(shifted))
    np.testing.assert_array_equal(shifted[0], y)
    np.testing.assert_array_equal(shifted[1], x + residual)


@pytest.mark.parametrize("axis", [0, (0, 2), (1, 2)])
def test_axes_and_layouts(axis, rng):
    x, residual = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    for fused, _, (y, *statistics) in both(x, residual, axis=axis):
        expected = [y, x + residual, *statistics]
        for a, b in zip(fused, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    y, total = normlib.add_layer_norm(x.T, residual[::-1].T, axis=axis)
    np.testing.assert_array_equal(total, (x + residual[::-1]).T)
    np.testing.assert_array_equal(y, normlib.layer_norm(total, axis=axis))


def test_residual_and_parameters_are_cast(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    residual = rng.standard_normal((4, 6))
    y, total = normlib.add_rms_norm(x, residual, np.ones(6))
    assert y.dtype == total.dtype == np.float32
    np.testing.assert_array_equal(total, x + residual.astype(np.float32))


@pytest.mark.parametrize("features", [6, 300])
def test_out(cpu_level, features, rng):
    x, residual = rng.standard_normal((2, 9, features)).astype(np.float32)
    gain = rng.standard_normal(features).astype(np.float32)
    for name in ("add_layer_norm", "add_rms_norm"):
        function = getattr(normlib, name)
        expected = function(x, residual, gain)

        def check(x, residual, out, function=function, expected=expected):
            result = function(x, residual, gain, out=out)
            assert result[0] is out[0]
            assert result[1] is out[1]
            for a, b in zip(out, expected, strict=True):
                np.testing.assert_array_equal(a, b)

        check(x, residual, (np.empty_like(x), np.empty_like(x)))
        check(x, residual, (np.empty((features, 9), np.float32).T, np.empty_like(x)))
        a, b = x.copy(), residual.copy()
        check(a, b, (a, b))
        a, b = x.copy(), residual.copy()
        check(a, b, (b, a))
        buffer = np.empty(x.size + 3, np.float32)
        a = buffer[3:].reshape(x.shape)
        a[...] = x
        check(a, residual, (np.empty_like(x), buffer[:-3].reshape(x.shape)))


def test_what_does_not_fit_is_refused():
    x = np.ones((2, 6), np.float32)
    for function in (normlib.add_layer_norm, normlib.add_rms_norm):
        with pytest.raises(ShapeError, match=r"residual must have shape \(2, 6\) to match x"):
            function(x, np.ones((6,), np.float32))
        with pytest.raises(ParameterError, match="out must be a tuple of two arrays"):
            function(x, x, out=x)
        with pytest.raises(ParameterError, match="out must be a tuple of two arrays"):
            function(x, x, out=(x, None))
        with pytest.raises(ParameterError, match="must not share memory"):
            function(x, x, out=(x, x[:]))
        with pytest.raises(ParameterError, match="eps must be"):
            function(x, x, eps=-1.0)
        with pytest.raises(ShapeError, match="gain must have shape"):
            function(x, x, np.ones(2))


def test_empty_arrays():
    x = np.empty((0, 6), np.float32)
    y, total, mean, _ = normlib.add_layer_norm_forward(x, x)
    assert y.shape == total.shape == (0, 6)
    assert mean.shape == (0,)
    y, total, rstd = normlib.add_rms_norm_forward(x.T, x.T)
    assert y.shape == total.shape == (6, 0)
    assert rstd.shape == (6,)
    assert np.isnan(rstd).all()


@pytest.mark.parametrize("axis", [-1, (0, 2)])
def test_backward_against_differences(axis, rng):
    x, residual, dy, dtotal = rng.standard_normal((4, 3, 4, 5))
    shape = (5,) if axis == -1 else (3, 5)
    gain, bias = rng.standard_normal((2, *shape))

    def layer_loss():
        y, total = normlib.add_layer_norm(x, residual, gain, bias, axis=axis)
        return float((dy * y).sum() + (dtotal * total).sum())

    _, total, mean, rstd = normlib.add_layer_norm_forward(x, residual, gain, bias, axis=axis)
    dx, dgain, dbias = normlib.add_layer_norm_backward(
        dy, dtotal, total, mean, rstd, gain, axis=axis
    )
    for gradient, array in [(dx, x), (dx, residual), (dgain, gain), (dbias, bias)]:
        assert_gradient(gradient, layer_loss, array)
    without, _, _ = normlib.add_layer_norm_backward(dy, None, total, mean, rstd, gain, axis=axis)
    np.testing.assert_allclose(without + dtotal, dx)

    def rms_loss():
        y, total = normlib.add_rms_norm(x, residual, gain, axis=axis)
        return float((dy * y).sum() + (dtotal * total).sum())

    _, total, rstd = normlib.add_rms_norm_forward(x, residual, gain, axis=axis)
    dx, dgain = normlib.add_rms_norm_backward(dy, dtotal, total, rstd, gain, axis=axis)
    for gradient, array in [(dx, x), (dx, residual), (dgain, gain)]:
        assert_gradient(gradient, rms_loss, array)
    with pytest.raises(ShapeError, match="dtotal must have shape"):
        normlib.add_rms_norm_backward(dy, dtotal[0], total, rstd, gain, axis=axis)


@pytest.mark.parametrize("axis", [-1, (0, 1)])
def test_backward_calls_its_arguments_by_their_names(axis):
    x = np.ones((3, 4), np.float32)
    _, total, mean, rstd = normlib.add_layer_norm_forward(x, x, axis=axis)
    with pytest.raises(ShapeError, match=r"dy must have shape \(3, 4\) to match total; got"):
        normlib.add_layer_norm_backward(x.T, None, total, mean, rstd, axis=axis)
    with pytest.raises(DTypeError, match=r"total must be float32, .* got int64"):
        normlib.add_layer_norm_backward(x, None, total.astype(int), mean, rstd, axis=axis)
    with pytest.raises(ShapeError, match=r"dtotal must have shape \(3, 4\) to match total; got"):
        normlib.add_rms_norm_backward(x, x.T, total, rstd, axis=axis)
    with pytest.raises(DTypeError, match=r"total must be float32, .* got int64"):
        normlib.add_rms_norm_backward(x, None, total.astype(int), rstd, axis=axis)
