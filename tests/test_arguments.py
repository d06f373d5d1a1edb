"""What the functional API takes and refuses: layouts, dtypes, shapes, out, empty arrays."""

import re
from fractions import Fraction

import numpy as np
import pytest

import normlib
from normlib.errors import DTypeError, ParameterError, ShapeError

MEAN, VAR = np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6)

# Every function of x with six features on the last axis, with all that it needs beside x and out.
FUNCTIONS = {
    "layer_norm": lambda x, **kw: normlib.layer_norm(x, **kw),
    "layer_norm_forward": lambda x, **kw: normlib.layer_norm_forward(x, **kw)[0],
    "rms_norm": lambda x, **kw: normlib.rms_norm(x, **kw),
    "rms_norm_forward": lambda x, **kw: normlib.rms_norm_forward(x, **kw)[0],
    "group_norm": lambda x, **kw: normlib.group_norm(x, 2, channel_axis=-1, **kw),
    "group_norm_forward": lambda x, **kw: normlib.group_norm_forward(x, 3, channel_axis=-1, **kw)[
        0
    ],
    "batch_norm": lambda x, **kw: normlib.batch_norm(x, MEAN, VAR, **kw),
    "batch_norm_forward": lambda x, **kw: normlib.batch_norm_forward(x, **kw)[0],
    "batch_norm_forward masked": lambda x, **kw: normlib.batch_norm_forward(
        x, mask=np.arange(x.size // 6).reshape(x.shape[:-1]) % 3 != 1, **kw
    )[0],
}
WITH_BIAS = [name for name in FUNCTIONS if not name.startswith("rms_norm")]


def misaligned(x):
    buffer = np.empty(x.nbytes + 1, np.uint8)
    copy = buffer[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    assert not copy.flags.aligned
    return copy


def strided(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "strided": strided,
    "read-only": read_only,
    "subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_layout_gives_the_same_bits(name, layout, dtype, rng):
    x = rng.standard_normal((5, 4, 6)).astype(dtype)
    gain = rng.standard_normal(6).astype(dtype)
    expected = FUNCTIONS[name](x, gain=gain)
    laid = LAYOUTS[layout](x)
    y = FUNCTIONS[name](laid, gain=LAYOUTS[layout](gain))
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == dtype
    assert y.dtype.isnative
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(np.asarray(laid), x)


@pytest.mark.parametrize("layout", ["fortran", "byte-swapped", "misaligned", "strided"])
def test_backward_takes_any_layout(layout, rng):
    x, dy = rng.standard_normal((2, 5, 6))
    _, mean, rstd = normlib.layer_norm_forward(x)
    for a, b in zip(
        normlib.layer_norm_backward(dy, x, mean, rstd, VAR),
        normlib.layer_norm_backward(
            *(LAYOUTS[layout](a) for a in (dy, x, mean, rstd, VAR)),
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_out(name, rng):
    x = rng.standard_normal((7, 6)).astype(np.float32)
    gain = rng.standard_normal(6).astype(np.float32)
    expected = FUNCTIONS[name](x, gain=gain)

    for out in [
        np.empty_like(x),
        np.empty((6, 7), np.float32).T,
        strided(x),
        misaligned(x),
        np.empty((9, 6), np.float32)[1:8],
    ]:
        assert FUNCTIONS[name](x, gain=gain, out=out) is out
        np.testing.assert_array_equal(out, expected)

    in_place = x.copy()
    assert FUNCTIONS[name](in_place, gain=gain, out=in_place) is in_place
    np.testing.assert_array_equal(in_place, expected)

    for shift in (-6, -1, 1, 3, 6):
        buffer = np.zeros(60, np.float32)
        shifted = buffer[6:48].reshape(7, 6)
        shifted[...] = x
        out = buffer[6 + shift : 48 + shift].reshape(7, 6)
        FUNCTIONS[name](shifted, gain=gain, out=out)
        np.testing.assert_array_equal(out, expected)

    transposed = rng.standard_normal((6, 6)).astype(np.float32)
    expected = FUNCTIONS[name](transposed.copy(), gain=gain)
    FUNCTIONS[name](transposed, gain=gain, out=transposed.T)
    np.testing.assert_array_equal(transposed.T, expected)

    # out may even lie over the gain.
    buffer = np.concatenate([gain, np.zeros(42, np.float32)])
    out = buffer[:42].reshape(7, 6)
    expected = FUNCTIONS[name](x, gain=gain)
    FUNCTIONS[name](x, gain=buffer[:6], out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_out_may_be_x_of_any_byte_order(name, dtype, rng):
    x = rng.standard_normal((7, 6)).astype(dtype)
    expected = FUNCTIONS[name](x)
    assert FUNCTIONS[name](x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("statistic", ["mean", "var"])
def test_out_may_lie_over_the_statistics(statistic, rng):
    # Channels with so large a gain read their mean again in every row.
    gain = np.array([1e300, 1, 1, 1, 1, 1e300])
    x = rng.standard_normal((7, 6))
    expected = normlib.batch_norm(x, MEAN, VAR, gain)
    statistics = {"mean": MEAN, "var": VAR}
    for first in (0, 12, 36):
        out = np.zeros(x.shape)
        held = out.ravel()[first : first + 6]
        held[...] = statistics[statistic]
        normlib.batch_norm(x, **(statistics | {statistic: held}), gain=gain, out=out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_out_needs_memory_for_each_element(name):
    x = np.ones((7, 6), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(np.zeros(12, np.float32), 6, writeable=True)
    row = np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (7, 6), (0, 4))
    column = np.lib.stride_tricks.as_strided(np.zeros(7, np.float32), (7, 6), (4, 0))
    for out in (windows, row, column):
        with pytest.raises(ParameterError, match="out must have memory of its own for every"):
            FUNCTIONS[name](x, out=out)
        assert not out.any()
    for out in (
        np.zeros((12, 7), np.float32)[::-2].T,
        np.zeros((7, 6, 3), np.float32)[:, ::-1, 1],
        np.zeros((9, 9), np.float32)[1:8, 3:],
    ):
        assert FUNCTIONS[name](x, out=out) is out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_out_is_refused_and_left_alone(name, rng):
    x = rng.standard_normal((7, 6)).astype(np.float32)
    for out, error, message in [
        (np.zeros((7, 5), np.float32), ShapeError, "out must have x's shape, (7, 6); got (7, 5)"),
        (np.zeros((7, 6)), DTypeError, "out must have x's dtype, float32; got float64"),
        (read_only(np.zeros((7, 6), np.float32)), ParameterError, "out must be writeable"),
        (np.zeros((7, 6), ">f8"), DTypeError, "out must have x's dtype, float32; got >f8"),
        ([[0.0] * 6] * 7, DTypeError, "out must be a NumPy array; got list"),
        (np.ma.zeros((7, 6), np.float32), DTypeError, "out must be a plain array; got a masked"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            FUNCTIONS[name](x, out=out)
        assert not np.any(out)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "dtype",
    [np.int64, np.uint8, bool, np.complex64, object, np.longdouble, "U3", "M8[s]"],
)
def test_other_dtypes_are_refused(name, dtype):
    x = np.zeros((7, 6), dtype)
    with pytest.raises(TypeError, match="x must be float32, float64, float16 or bfloat16; got"):
        FUNCTIONS[name](x)
    with pytest.raises(TypeError, match="gain must be float32, float64, float16 or bfloat16; got"):
        FUNCTIONS[name](np.zeros((7, 6), np.float32), gain=np.zeros(6, dtype))


def test_lists_of_floats_are_float64():
    np.testing.assert_array_equal(
        normlib.layer_norm([[1.0, 2.0], [5.0, 3.0]], [1.0, 2.0], eps=0), [[-1, 2], [1, -2]]
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_too_large_for_float32_becomes_inf(name):
    x = np.linspace(-1, 1, 42, dtype=np.float32).reshape(7, 6)
    if name in WITH_BIAS:
        np.testing.assert_array_equal(FUNCTIONS[name](x, bias=np.full(6, 1e300)), np.inf)
    assert not np.isfinite(FUNCTIONS[name](x, gain=np.full(6, 1e300))).any()


def test_ragged_lists_are_refused():
    ragged = [[1.0, 2.0], [3.0]]
    with pytest.raises(DTypeError, match="x must be an array, or nested lists whose lengths agree"):
        normlib.layer_norm(ragged)
    with pytest.raises(DTypeError, match="mask must be an array, or nested lists"):
        normlib.batch_norm_forward(np.ones((2, 2)), mask=[[True], True])


def test_masked_arrays_are_refused():
    with pytest.raises(DTypeError, match="must be a plain array; got a masked one"):
        normlib.layer_norm(np.ma.masked_equal(np.eye(3), 0))
    with pytest.raises(DTypeError, match="mask must be a plain array; got a masked one"):
        normlib.batch_norm_forward(
            np.eye(3), mask=np.ma.array([True] * 3, mask=[False, True, False])
        )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "eps",
    [-1e-5, -1, np.nan, np.inf, None, "small", "1e-5", b"1", True, np.True_, 10**400, 1j, [1e-5]],
)
def test_bad_eps_is_refused(name, eps):
    with pytest.raises(ParameterError, match="eps must be a finite number of at least 0; got"):
        FUNCTIONS[name](np.ones((7, 6), np.float32), eps=eps)


@pytest.mark.parametrize("eps", [1, np.float32(0.5), np.int64(1), Fraction(1, 2)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_eps_is_any_real_number(name, eps, rng):
    x = rng.standard_normal((7, 6))
    np.testing.assert_array_equal(FUNCTIONS[name](x, eps=eps), FUNCTIONS[name](x, eps=float(eps)))


def test_zero_eps_is_allowed():
    x = np.array([[1.0, 3.0], [2.0, 2.0]])
    y = normlib.layer_norm(x, eps=0)
    np.testing.assert_array_equal(y, [[-1, 1], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, "gain") for name in FUNCTIONS] + [(name, "bias") for name in WITH_BIAS],
)
def test_wrong_parameter_shape_names_rule_and_value(name, argument):
    x = np.ones((7, 6), np.float32)
    with pytest.raises(
        ShapeError, match=rf"{argument} must have shape \(6,\) to match .*got \(5,\)"
    ):
        FUNCTIONS[name](x, **{argument: np.ones(5, np.float32)})
    with pytest.raises(ShapeError, match=rf"{argument} must have shape \(6,\)"):
        FUNCTIONS[name](x, **{argument: np.float32(1)})


def test_message_of_the_design():
    x = np.ones((4, 128), np.float32)
    with pytest.raises(
        ShapeError, match=re.escape("gain must have shape (128,) to match axis -1 of x; got (64,)")
    ):
        normlib.layer_norm(x, np.ones(64, np.float32))


def test_parameters_are_cast_to_the_dtype_of_x(rng):
    x = rng.standard_normal((7, 6)).astype(np.float32)
    gain = rng.standard_normal(6)
    for f in FUNCTIONS.values():
        y = f(x, gain=gain)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, f(x, gain=gain.astype(np.float32)))


AXIS_FUNCTIONS = [
    normlib.layer_norm,
    normlib.layer_norm_forward,
    normlib.moments,
    lambda x, axis: normlib.layer_norm_backward(x, x, np.zeros(3), np.ones(3), axis=axis),
]


@pytest.mark.parametrize(
    "axis", [-1.0, 1.5, True, False, (True,), "last", "1", None, np.array([True, False])]
)
@pytest.mark.parametrize("function", AXIS_FUNCTIONS)
def test_an_axis_must_be_an_integer(function, axis):
    with pytest.raises(ParameterError, match="axis must be an integer or a tuple of them; got"):
        function(np.ones((3, 4)), axis=axis)


@pytest.mark.parametrize("axis", [2, -3, (0, 0), (0, -2), (), (0, 5), 2**40, -(2**70), (0, 2**40)])
@pytest.mark.parametrize("function", AXIS_FUNCTIONS)
def test_an_axis_must_be_one_of_x(function, axis):
    with pytest.raises(ShapeError, match="axis must name"):
        function(np.ones((3, 4)), axis=axis)


@pytest.mark.parametrize("axes", [np.array([0, 2]), [0, 2], [np.int64(-1), -3], np.array([-1, 0])])
def test_axes_come_in_any_sequence(axes, rng):
    x = rng.standard_normal((3, 4, 5))
    y, mean, rstd = normlib.layer_norm_forward(x, axis=(0, 2))
    np.testing.assert_array_equal(normlib.layer_norm(x, axis=axes), y)
    np.testing.assert_array_equal(normlib.layer_norm_forward(x, axis=axes)[0], y)
    np.testing.assert_array_equal(normlib.moments(x, axes)[0], mean)
    for a, b in zip(
        normlib.layer_norm_backward(x, x, mean, rstd, axis=axes),
        normlib.layer_norm_backward(x, x, mean, rstd, axis=(0, 2)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("axis", [np.int64(-1), np.array(-1), np.array([-1]), [-1]])
def test_the_last_axis_in_other_guise(axis, rng):
    x = rng.standard_normal((3, 4))
    np.testing.assert_array_equal(normlib.layer_norm(x, axis=axis), normlib.layer_norm(x))


@pytest.mark.parametrize("channel_axis", [2, -3, 1.0, None, (0,), True, 2**40, -(2**70)])
def test_bad_channel_axis_is_refused(channel_axis):
    with pytest.raises((ShapeError, ParameterError), match="channel_axis must be"):
        normlib.batch_norm_forward(np.ones((3, 4)), channel_axis=channel_axis)


def test_scalars_are_refused():
    with pytest.raises(ShapeError, match="scalar"):
        normlib.layer_norm(1.0)
    with pytest.raises(ShapeError, match="scalar"):
        normlib.batch_norm(np.float32(1.0), [0.0], [1.0])


def test_bad_statistics_are_refused():
    x = np.ones((3, 4))
    with pytest.raises(ShapeError, match=r"mean must have shape \(4,\)"):
        normlib.batch_norm(x, np.zeros(3), np.ones(4))
    with pytest.raises(ParameterError, match=r"var must be at least 0; got -1\.0"):
        normlib.batch_norm(x, np.zeros(4), np.array([1.0, -1, 1, 1]))
    with pytest.raises(ShapeError, match=r"rstd must have shape \(3,\)"):
        normlib.layer_norm_backward(x, x, np.zeros(3), np.ones(4))
    with pytest.raises(ShapeError, match=r"dy must have shape \(3, 4\)"):
        normlib.layer_norm_backward(x[:2], x, np.zeros(3), np.ones(3))
    with pytest.raises(DTypeError, match="dy must be an array of shape"):
        normlib.layer_norm_backward(None, x, np.zeros(3), np.ones(3))


def test_bad_masks_are_refused():
    x = np.ones((3, 4))
    with pytest.raises(DTypeError, match="mask must be boolean; got int64"):
        normlib.batch_norm_forward(x, mask=np.ones(3, np.int64))
    with pytest.raises(ShapeError, match=r"mask must have shape \(3,\)"):
        normlib.batch_norm_forward(x, mask=np.ones((3, 4), bool))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_empty_arrays(dtype):
    for shape in [(0, 6), (2, 0, 6)]:
        x = np.empty(shape, dtype)
        y, mean, rstd = normlib.layer_norm_forward(x)
        assert y.shape == shape
        assert y.dtype == dtype
        assert mean.shape == rstd.shape == shape[:-1]
        dx, dgain, dbias = normlib.layer_norm_backward(x, x, mean, rstd, np.ones(6, dtype))
        assert dx.shape == shape
        np.testing.assert_array_equal(dgain, np.zeros(6))
        np.testing.assert_array_equal(dbias, np.zeros(6))
        assert normlib.batch_norm(x, MEAN, VAR).shape == shape
        out = np.empty(shape, dtype)
        assert normlib.layer_norm(x, out=out) is out
    # No features: nothing to normalize, and no statistics.
    y, mean, rstd = normlib.layer_norm_forward(np.empty((3, 0), dtype))
    assert y.shape == (3, 0)
    assert np.isnan(mean).all()
    assert np.isnan(rstd).all()
    # No channels, but enough rows.
    y, mean, var = normlib.batch_norm_forward(np.empty((3, 0), dtype))
    assert y.shape == (3, 0)
    assert mean.shape == var.shape == (0,)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_new_outputs_start_a_cache_line(name, rng):
    for shape in [(3, 6), (50, 4, 6)]:
        y = FUNCTIONS[name](rng.standard_normal(shape).astype(np.float32))
        if "masked" not in name:
            assert y.ctypes.data % 64 == 0
        assert y.flags.c_contiguous
        assert y.flags.writeable
