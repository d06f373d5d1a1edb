"""float16 and bfloat16: stored half, computed in float32, rounded once."""

import numpy as np
import pytest

import normlib
from normlib import _kernels
from normlib.errors import DTypeError, ParameterError, ShapeError
from normlib.functional.half import rounded, widen
from reference import layer_norm, rms_norm

ml_dtypes = pytest.importorskip("ml_dtypes", reason="has the type bfloat16")
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
ids = pytest.mark.parametrize("dtype", HALVES, ids=str)


def same(actual, expected):
    """The same bits, but for NaN, of which one is as good as another."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    a, b = (array.astype(np.float32) for array in (actual, expected))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a)[~np.isnan(a)], np.signbit(b)[~np.isnan(b)])


@ids
def test_every_half_widens_and_comes_back(cpu_level, n_threads, dtype):
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    same(widen(x), x.astype(np.float32))
    same(rounded(x, widen(x)), x)


@ids
def test_bits_of_every_half_and_quiet_nans(cpu_level, n_threads, dtype):
    """Signs of zeros, subnormals and payloads too; a signaling NaN comes back quiet."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(dtype)
    nan = np.isnan(x.astype(np.float32))
    quiet = np.uint16(0x200 if dtype == np.float16 else 0x40)
    shift = 13 if dtype == np.float16 else 16
    wide = widen(x)
    numbers = x[~nan].astype(np.float32)
    np.testing.assert_array_equal(wide[~nan].view(np.uint32), numbers.view(np.uint32))
    payload = bits[nan] & np.uint16(quiet * 2 - 1)
    got = wide[nan].view(np.uint32)
    assert np.isnan(wide[nan]).all()
    np.testing.assert_array_equal(got >> 31, bits[nan] >> 15)
    np.testing.assert_array_equal((got & 0x3FFFFF) >> shift, payload & (quiet - 1))
    back = rounded(x, wide).view(np.uint16)
    np.testing.assert_array_equal(back, np.where(nan, bits | quiet, bits))


@ids
def test_floats_are_rounded_to_the_nearest_ties_to_even(cpu_level, dtype, rng):
    halves = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middle = (finite[1:].astype(float) + finite[:-1].astype(float)) / 2
    middle = middle.astype(np.float32)
    bits = rng.integers(0, 1 << 32, 100_003, dtype=np.uint64).astype(np.uint32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, -65520, 1e38, 3.4e38])
    with np.errstate(over="ignore", invalid="ignore"):
        floats = np.concatenate(
            [
                middle,
                np.nextafter(middle, np.inf),
                np.nextafter(middle, -np.inf),
                bits.view(np.float32),
                special.astype(np.float32),
            ]
        )
        expected = floats.astype(dtype)
    for part in (floats, floats[3:], floats[:7]):
        first = 3 if part is not floats and part.size > 7 else 0
        same(rounded(np.empty(0, dtype), part), expected[first : first + part.size])


def functions(rng, channels):
    gain, bias = rng.standard_normal((2, channels)).astype(np.float32)
    mean, var = rng.standard_normal(channels), rng.uniform(1, 2, channels)
    return {
        "layer_norm": lambda x, **kw: normlib.layer_norm(x, gain, bias, **kw),
        "layer_norm_forward": lambda x, **kw: normlib.layer_norm_forward(x, None, bias, **kw),
        "rms_norm": lambda x, **kw: normlib.rms_norm(x, gain, **kw),
        "rms_norm_forward": lambda x, **kw: normlib.rms_norm_forward(x, gain, **kw),
        "group_norm": lambda x, **kw: normlib.group_norm(x, 2, gain, bias, **kw),
        "group_norm_forward": lambda x, **kw: normlib.group_norm_forward(x, 2, gain, **kw),
        "instance_norm": lambda x, **kw: normlib.instance_norm(
            x[..., None, :], channel_axis=1, **{key: a[..., None, :] for key, a in kw.items()}
        )[..., 0, :],
        "batch_norm": lambda x, **kw: normlib.batch_norm(x, mean, var, gain, bias, **kw),
        "batch_norm_forward": lambda x, **kw: normlib.batch_norm_forward(x, gain, bias, **kw),
    }


@ids
@pytest.mark.parametrize("shape", [(1, 2), (7, 6), (33, 100), (5, 768), (3, 4000), (2, 10000)])
def test_as_in_float32_rounded_once(cpu_level, n_threads, dtype, shape, rng):
    x = (3 + rng.standard_normal(shape)).astype(dtype)
    if len(x) > 2:
        x[1, 0] = np.nan
    for name, function in functions(rng, shape[1]).items():
        if "batch_norm_forward" in name and len(x) < 2:
            continue
        expected, actual = function(x.astype(np.float32)), function(x)
        if not isinstance(expected, tuple):
            expected, actual = (expected,), (actual,)
        same(actual[0], expected[0].astype(dtype))
        for a, b in zip(actual[1:], expected[1:], strict=True):
            assert a.dtype == np.float64
            np.testing.assert_array_equal(a, b)
        out = np.empty_like(x)
        result = function(x, out=out)
        assert name == "instance_norm" or (result[0] if len(expected) > 1 else result) is out
        same(out, actual[0])
        in_place = x.copy()
        function(in_place, out=in_place)
        same(in_place, actual[0])


@ids
def test_within_an_ulp_of_the_oracle(cpu_level, dtype, rng):
    """Half an ulp by the rounding, and hardly more by what comes before."""
    x = rng.standard_normal((20, 300)).astype(dtype)
    gain = rng.uniform(0.5, 1.5, 300).astype(dtype)
    for y, expected in [
        (normlib.layer_norm(x, gain), layer_norm(x.astype(float), gain.astype(float))[0]),
        (normlib.rms_norm(x, gain), rms_norm(x.astype(float), gain.astype(float))[0]),
    ]:
        size = np.exp2(np.floor(np.log2(np.abs(expected.astype(float)))))
        error = np.abs(y.astype(float) - expected) / (size * float(ml_dtypes.finfo(dtype).eps))
        assert error.max() < 0.51


@ids
def test_past_the_cache(cpu_level, n_threads, dtype, rng):
    x = rng.standard_normal((2050, 2048), dtype=np.float32).astype(dtype)
    some = slice(1000, 1003)
    shifted = np.empty(x.size + 1, dtype)[1:].reshape(x.shape)
    for function in (normlib.layer_norm, normlib.rms_norm):
        y = function(x)
        same(y[some], function(x[some]))
        same(function(x, out=shifted), y)


@ids
@pytest.mark.parametrize("axis", [0, (0, 2), (1, 2)])
def test_axes_layouts_and_byte_order(dtype, axis, rng):
    x = rng.standard_normal((3, 4, 5)).astype(dtype)
    expected = normlib.layer_norm(x.astype(np.float32), axis=axis).astype(dtype)
    same(normlib.layer_norm(x, axis=axis), expected)
    same(normlib.layer_norm(np.asfortranarray(x), axis=axis), expected)
    if dtype == np.float16:
        same(normlib.layer_norm(x.astype(">f2"), axis=axis), expected)


@ids
def test_backward_is_that_of_float32_rounded(dtype, rng):
    x, dy = rng.standard_normal((2, 6, 4, 5)).astype(dtype)
    wide, dwide = x.astype(np.float32), dy.astype(np.float32)
    gains = {5: np.linspace(1, 2, 5, dtype=np.float32), 4: np.linspace(1, 2, 4, dtype=np.float32)}
    _, mean, rstd = normlib.layer_norm_forward(x)
    _, rms = normlib.rms_norm_forward(x)
    _, channel_mean, var = normlib.batch_norm_forward(x)
    _, group_mean, group_rstd = normlib.group_norm_forward(x, 2)
    for run in (
        lambda dy, x: normlib.layer_norm_backward(dy, x, mean, rstd, gains[5]),
        lambda dy, x: normlib.rms_norm_backward(dy, x, rms, gains[5]),
        lambda dy, x: normlib.batch_norm_backward(dy, x, channel_mean, var, gains[5]),
        lambda dy, x: normlib.group_norm_backward(dy, x, 2, group_mean, group_rstd, gains[4]),
        lambda dy, x: normlib.add_layer_norm_backward(dy, None, x, mean, rstd),
    ):
        for actual, expected in zip(run(dy, x), run(dwide, wide), strict=True):
            if expected is None:
                assert actual is None
            else:
                same(actual, expected.astype(dtype))


@ids
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (33, 100), (9, 768), (2050, 2048)])
def test_backward_of_rows(cpu_level, n_threads, dtype, shape, rng):
    x, dy, around = rng.standard_normal((3, *shape), dtype=np.float32).astype(dtype)
    gain = np.linspace(1, 2, shape[1], dtype=np.float32)
    if len(x) > 2:
        x[1, 0] = np.nan
        x[2] *= np.float32(1e-4)
    wide, dwide, wide_around = (array.astype(np.float32) for array in (x, dy, around))
    _, mean, rstd = normlib.layer_norm_forward(x)
    _, rms = normlib.rms_norm_forward(x)
    for actual, expected in [
        (
            normlib.add_layer_norm_backward(dy, around, x, mean, rstd, gain),
            normlib.add_layer_norm_backward(dwide, wide_around, wide, mean, rstd, gain),
        ),
        (
            normlib.layer_norm_backward(dy, x, mean, rstd),
            normlib.layer_norm_backward(dwide, wide, mean, rstd),
        ),
        (
            normlib.rms_norm_backward(dy, x, rms, gain),
            normlib.rms_norm_backward(dwide, wide, rms, gain),
        ),
    ]:
        for a, b in zip(actual, expected, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                with np.errstate(over="ignore"):
                    same(a, b.astype(dtype))


@ids
@pytest.mark.parametrize("shape", [(1, 1), (6, 40), (9, 100), (2, 4000), (2050, 2048)])
def test_a_sum_is_rounded_and_then_normalized(cpu_level, n_threads, dtype, shape, rng):
    x, residual = rng.standard_normal((2, *shape), dtype=np.float32).astype(dtype)
    gain, bias = np.linspace(1, 2, shape[1], dtype=np.float32), np.ones(shape[1], np.float32)
    if len(x) > 2:
        x[1, 0] = np.nan
    total = (x.astype(np.float32) + residual.astype(np.float32)).astype(dtype)
    shifted = np.empty(2 * x.size + 1, dtype)[1:].reshape(2, *shape)
    for given in (None, (np.empty_like(x), np.empty_like(x)), (shifted[0], shifted[1])):
        results = normlib.add_layer_norm_forward(x, residual, gain, bias, out=given)
        if given is not None:
            assert results[0] is given[0]
            assert results[1] is given[1]
        same(results[1], total)
        for got, expected in zip(
            [results[0], *results[2:]], normlib.layer_norm_forward(total, gain, bias), strict=True
        ):
            same(got, expected)
        y, got = normlib.add_rms_norm(x, residual, gain, out=given)
        same(got, total)
        same(y, normlib.rms_norm(total, gain))
    in_place = x.copy(), residual.copy()
    y, got, rstd = normlib.add_rms_norm_forward(*in_place, gain, out=in_place)
    same(y, normlib.rms_norm(total, gain))
    same(got, total)
    dx, _ = normlib.add_rms_norm_backward(y, x, total, rstd, gain)
    assert dx.dtype == dtype


@ids
def test_a_residual_is_cast_to_the_half_type(dtype, rng):
    x, residual = rng.standard_normal((2, 3, 40)).astype(np.float32)
    x = x.astype(dtype)
    _, total = normlib.add_layer_norm(x, residual)
    _, expected = normlib.add_layer_norm(x, residual.astype(dtype))
    same(total, expected)
    with pytest.raises(ShapeError, match="residual must have shape"):
        normlib.add_layer_norm(x, x[:2])


@ids
def test_normalizers_cast_halves_to_their_own_type(dtype, rng):
    x = rng.standard_normal((5, 8)).astype(dtype)
    for name in ("layer", "rms", "group", "instance", "noop", "batch"):
        norm = normlib.create(name, 8)
        y = norm(x)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, norm(x.astype(np.float32)))


@ids
def test_empty_and_wrong_out(dtype):
    x = np.empty((0, 6), dtype)
    y, mean, _ = normlib.layer_norm_forward(x)
    assert y.dtype == dtype
    assert mean.shape == (0,)
    assert normlib.group_norm(x, 2).shape == (0, 6)
    for function in (normlib.layer_norm, lambda x, **kw: normlib.group_norm(x, 2, **kw)):
        with pytest.raises(DTypeError, match="out must have x's dtype"):
            function(np.ones((2, 6), dtype), out=np.empty((2, 6), np.float32))


@ids
def test_a_read_only_out_is_refused(dtype):
    x = np.ones((2, 6), dtype)
    x.flags.writeable = False
    for function in (normlib.layer_norm, normlib.rms_norm, normlib.layer_norm_forward):
        with pytest.raises(ParameterError, match=r"writeable|read-only"):
            function(x, out=x)


def test_every_level_gives_the_same_bits(rng):
    levels = [level for level in _kernels.available_levels() if level != "baseline"]
    for dtype in HALVES:
        x = rng.standard_normal(1000).astype(np.float32)
        bits = set()
        for level in levels:
            y = np.empty(1000, np.uint16)
            _kernels.load("halves", level).narrow(x, y, 1000, dtype != np.float16, 1)
            bits.add(y.tobytes())
        assert len(bits) <= 1


@ids
def test_moments_are_those_of_the_widened(cpu_level, dtype, rng):
    x = rng.standard_normal((6, 5, 7)).astype(dtype)
    for given in (x, x[::2, ::-1], np.asfortranarray(x)):
        for actual, expected in zip(
            normlib.moments(given, (0, 2)),
            normlib.moments(given.astype(np.float32), (0, 2)),
            strict=True,
        ):
            np.testing.assert_array_equal(actual, expected, strict=True)
    seen = normlib.Moments(7)
    seen.update(x)
    np.testing.assert_array_equal(seen.mean, normlib.moments(x, (0, 1))[0])
    assert np.isnan(normlib.moments(x[:0], 0)[0]).all()


@ids
@pytest.mark.parametrize("name", ["layer", "batch", "rms", "group", "instance", "noop"])
def test_normalizers_cast_halves_to_their_dtype(dtype, name, rng):
    x, dy = rng.standard_normal((2, 5, 8)).astype(dtype)
    results = []
    for given, gradient in ((x, dy), (x.astype(np.float32), dy.astype(np.float32))):
        norm = normlib.create(name, 8)
        y, cache = norm.forward(given)
        dx, grads = norm.backward(gradient, cache)
        results.append([norm(given), y, dx, *grads.values()])
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected, strict=True)
