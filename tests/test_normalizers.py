"""The normalizers: settings, values against the formulas in float64, what they refuse."""

import numpy as np
import pytest

from normalizer_rows import expected, rows, set_randomly, tolerance
from normlib import RNN, BatchNorm, GroupNorm, InstanceNorm, LayerNorm, NoOp, RMSNorm
from normlib.errors import DTypeError, ParameterError, ShapeError

CLASSES = [LayerNorm, BatchNorm, NoOp]
DTYPES = ["float32", "float64"]


# ---- construction ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [LayerNorm, BatchNorm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_start_at_one_and_zero(cls, dtype):
    norm = cls(np.int64(3), dtype=dtype)
    assert (norm.features, norm.eps, norm.dtype) == (3, 1e-5, np.dtype(dtype))
    np.testing.assert_array_equal(norm.parameters["gain"], np.ones(3, dtype), strict=True)
    np.testing.assert_array_equal(norm.parameters["bias"], np.zeros(3, dtype), strict=True)
    assert list(cls(3, gain=False).parameters) == ["bias"]
    assert list(cls(3, bias=False).parameters) == ["gain"]
    assert cls(3, gain=False, bias=False).parameters == {}


def test_no_op_has_no_parameters():
    assert NoOp(3).parameters == {}


def test_traits():
    assert [cls.per_sample for cls in CLASSES] == [True, False, True]
    assert [cls.rnn_gain for cls in CLASSES] == [1.0, 0.1, 1.0]
    assert [cls.min_rows for cls in CLASSES] == [0, 2, 0]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"features": 0}, ParameterError, "features must be an integer of at least 1; got 0"),
        ({"features": True}, ParameterError, "features must be an integer"),
        ({"features": 2.0}, ParameterError, "features must be an integer"),
        ({"features": "3"}, ParameterError, "features must be an integer"),
        ({"features": 2**70}, ParameterError, r"features must be at most \d+; got 118"),
        ({"eps": -1e-5}, ParameterError, "eps must be a finite number of at least 0"),
        ({"eps": float("nan")}, ParameterError, "eps must be"),
        ({"eps": float("inf")}, ParameterError, "eps must be"),
        ({"eps": "small"}, ParameterError, "eps must be"),
        ({"eps": "1e-5"}, ParameterError, "eps must be"),
        ({"eps": True}, ParameterError, "eps must be"),
        ({"eps": 10**400}, ParameterError, "eps must be"),
        ({"gain": np.ones(3)}, ParameterError, "gain says whether there is one"),
        ({"bias": None}, ParameterError, "bias says whether there is one"),
        ({"dtype": "int64"}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "float16"}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": None}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "no dtype"}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "("}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "f4,"}, DTypeError, "dtype must be float32 or float64"),
        ({"dtype": [("a", "f4")] * 2}, DTypeError, "dtype must be float32 or float64"),
    ],
)
def test_wrong_settings_are_refused(cls, setting, error, message):
    with pytest.raises(error, match=message):
        cls(**{"features": 3, **setting})


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), "fast", True, False, 1j])
def test_wrong_momentum_is_refused(momentum):
    with pytest.raises(ParameterError, match=r"momentum must be in \[0, 1\], or None"):
        BatchNorm(3, momentum=momentum)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, 2**62])
def test_wrong_steps_are_refused(steps):
    with pytest.raises(ParameterError, match=r"steps must be (an integer|at most)"):
        BatchNorm(3, steps=steps)


def test_steps_that_do_not_fit_in_memory_say_so(monkeypatch):
    def full(shape):
        raise MemoryError("no memory")

    monkeypatch.setattr(np, "ones", full)
    for make in (
        lambda: BatchNorm(3, steps=12),
        lambda: RNN(2, 3, norm="batch", norm_config={"steps": 12}),
    ):
        with pytest.raises(MemoryError, match="no memory") as caught:
            make()
        (note,) = caught.value.__notes__
        assert "steps must be so few that their running statistics fit in memory; got 12" in note
        assert "Use no more than the longest training sequence has" in note


def test_no_eps_is_allowed():
    norm = LayerNorm(2, eps=0, dtype="float64")
    np.testing.assert_array_equal(norm(np.array([[1.0, 3.0]])), [[-1.0, 1.0]])


# ---- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7)])
@pytest.mark.parametrize("parameters", [{}, {"gain": False}, {"bias": False}])
def test_layer_norm_is_its_formula(dtype, shape, parameters):
    norm = set_randomly(LayerNorm(7, dtype=dtype, eps=1e-3, **parameters))
    x = rows(*shape, dtype=dtype)
    wide = x.astype(np.float64)
    want = expected(norm, x, wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True))
    np.testing.assert_allclose(norm(x), want, **tolerance(dtype))
    np.testing.assert_array_equal(norm.forward(x)[0], norm(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7)])
@pytest.mark.parametrize("parameters", [{}, {"gain": False}, {"bias": False}])
def test_batch_norm_is_its_formula(dtype, shape, parameters):
    norm = set_randomly(BatchNorm(7, dtype=dtype, eps=1e-3, momentum=1.0, **parameters))
    x = rows(*shape, dtype=dtype)
    flat = x.reshape(-1, 7).astype(np.float64)
    want = expected(norm, x, flat.mean(0), flat.var(0))
    y, _ = norm.forward(x)
    np.testing.assert_allclose(y, want, **tolerance(dtype))
    # momentum 1: the running statistics are those of the last batch.
    np.testing.assert_allclose(norm(x), want, **tolerance(dtype))


def test_no_op_copies():
    x = rows(4, 3, dtype="float32")
    norm = NoOp(3)
    y, cache = norm.forward(x)
    dx, grads = norm.backward(x, cache)
    for result in (norm(x), y, dx):
        np.testing.assert_array_equal(result, x, strict=True)
        assert not np.shares_memory(result, x)
    assert grads == {}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("source", ["float32", "float64", ">f4", ">f8"])
def test_floating_point_input_is_cast_to_the_own_dtype(cls, source):
    x = rows(4, 3).astype(source)
    norm = cls(3, dtype="float32")
    np.testing.assert_array_equal(norm(x), norm(x.astype("float32")), strict=True)
    assert norm.forward(x)[0].dtype == np.float32


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", ">f4"])
def test_input_may_be_the_output(cls, dtype):
    x = rows(4, 3).astype(dtype)
    norm = cls(3)
    want = norm(x)
    assert norm(x, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("cls", CLASSES)
def test_nested_lists_are_input_too(cls):
    assert cls(2)([[1.0, 2.0], [3.0, 4.0]]).shape == (2, 2)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"x": np.ones((4, 3), int)},
            DTypeError,
            "x must be float32, float64, float16 or bfloat16; got int64. Convert it",
        ),
        ({"x": np.ones((4, 2))}, ShapeError, r"x must have shape \(..., 3\), .* got \(4, 2\)"),
        ({"x": np.ones((4, 3), "longdouble")}, DTypeError, "got float128"),
        ({"x": np.ma.ones((4, 3))}, DTypeError, "must be a plain array; got a masked one"),
        ({"x": np.float64(1)}, ShapeError, r"got \(\)"),
        ({"step": -1}, ParameterError, "step must be an integer of at least 0; got -1"),
        ({"step": 1.0}, ParameterError, "step must be an integer"),
        ({"mask": np.ones(3, bool)}, ShapeError, r"mask must have shape \(4,\)"),
        ({"mask": np.ones((4, 3), bool)}, ShapeError, r"mask must have shape \(4,\)"),
        ({"mask": np.ones(4, int)}, DTypeError, "mask must be boolean"),
    ],
)
def test_wrong_arguments_are_refused(cls, arguments, error, message):
    norm = cls(3)
    with pytest.raises(error, match=message):
        norm.forward(**{"x": np.ones((4, 3)), **arguments})
    if "mask" not in arguments:
        with pytest.raises(error, match=message):
            norm(**{"x": np.ones((4, 3)), **arguments})


@pytest.mark.parametrize("cls", CLASSES)
def test_a_wrong_gradient_is_refused(cls):
    norm = cls(3)
    _, cache = norm.forward(rows(4, 3))
    with pytest.raises(ShapeError, match=r"dy must have shape \(4, 3\) to match y; got \(1, 3\)"):
        norm.backward(rows(1, 3), cache)
    with pytest.raises(
        DTypeError, match="dy must be float32, float64, float16 or bfloat16; got int64"
    ):
        norm.backward(np.ones((4, 3), int), cache)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_cache_of_another_normalizer_is_refused(cls):
    norm, dy = cls(3, dtype="float64"), rows(4, 3)
    others = [other(3, dtype="float64").forward(dy)[1] for other in CLASSES if other is not cls]
    own = f"cache must be what forward of this {cls.__name__} returned beside y"
    for cache in [None, (), dy, dy.shape, *others]:
        with pytest.raises(ParameterError, match=f"{own}; got an object of <class"):
            norm.backward(dy, cache)
    _, cache = cls(3).forward(dy)
    with pytest.raises(ParameterError, match=f"{own}, of dtype float64; got one of float32"):
        norm.backward(dy, cache)
    _, cache = cls(5, dtype="float64").forward(rows(4, 5))
    with pytest.raises(ShapeError, match=f"{own}, of 3 features; got one of 5"):
        norm.backward(rows(4, 5), cache)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_too_large_for_float32_becomes_inf(cls):
    huge = np.full((4, 3), 1e300)
    norm = cls(3)
    norm(huge)
    _, cache = norm.forward(rows(4, 3))
    norm.backward(huge, cache)
    if norm.parameters:
        norm.load_state_dict({**norm.state_dict(), "bias": np.full(3, 1e300)})
        assert np.isinf(norm.parameters["bias"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", [*CLASSES, RMSNorm, GroupNorm, InstanceNorm])
def test_nan_inf_and_overflow_are_silent(cls, dtype):
    largest = np.finfo(dtype).max
    norm = cls(4, dtype=dtype)
    with np.errstate(all="raise"):
        for first in [np.nan, np.inf, largest]:
            for second in [np.nan, -np.inf, -largest, 1.0]:
                x = np.array([[first] * 4, [second] * 4, [1.0, 2.0, first, second]], dtype)
                for shape in [(3, 4), (3, 1, 4), (1, 3, 4)]:
                    for forward in [norm.forward, norm.forward_frozen]:
                        _, cache = forward(x.reshape(shape))
                        norm.backward(x.reshape(shape), cache)
                    norm(x.reshape(shape))
