"""The normalizers: values against the formulas in float64, running statistics, state, errors."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normlib import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, NoOp, Normalizer, RMSNorm
from normlib.errors import DTypeError, ParameterError, ShapeError, StateError

CLASSES = [LayerNorm, BatchNorm, NoOp]
DTYPES = ["float32", "float64"]


def rows(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(dtype)


def set_randomly(norm, seed=9):
    rng = np.random.default_rng(seed)
    for array in norm.parameters.values():
        array[...] = rng.normal(size=array.shape)
    return norm


def expected(norm, x, mean, var):
    y = (x.astype(np.float64) - mean) / np.sqrt(var + norm.eps)
    return y * norm.parameters.get("gain", 1.0) + norm.parameters.get("bias", 0.0)


def tolerance(dtype):
    return {"rtol": 16 * np.finfo(dtype).eps, "atol": 16 * np.finfo(dtype).eps}


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


# ---- running statistics ---------------------------------------------------------------------


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


# ---- configuration and state ----------------------------------------------------------------


@pytest.mark.parametrize(
    "norm",
    [
        LayerNorm(3, gain=False, eps=1e-3, dtype="float64"),
        BatchNorm(3, bias=False, momentum=None, steps=4),
        NoOp(3),
    ],
    ids=lambda norm: norm.name,
)
def test_config_survives_json(norm):
    config = json.loads(json.dumps(norm.get_config()))
    other = type(norm).from_config(config)
    assert other.get_config() == norm.get_config() == config
    assert other.parameters.keys() == norm.parameters.keys()
    assert repr(other) == repr(norm)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_config_with_other_names_is_refused(cls):
    with pytest.raises(StateError, match=f"{cls.__name__} does not take 'epss'. Did you mean"):
        cls.from_config({"features": 3, "epss": 1})
    with pytest.raises(StateError, match=f"{cls.__name__} needs a value for 'features'"):
        cls.from_config({"eps": 1})
    with pytest.raises(ParameterError, match="eps must be"):
        cls.from_config({"features": 3, "eps": -1})


def test_repr_is_the_call_that_makes_it():
    text = repr(BatchNorm(3, bias=False, momentum=None))
    assert eval(text).get_config() == BatchNorm(3, bias=False, momentum=None).get_config()


def test_state_has_parameters_and_statistics():
    assert list(LayerNorm(3).state_dict()) == ["gain", "bias"]
    names = ["gain", "bias", "running_mean", "running_var", "num_batches"]
    assert list(BatchNorm(3).state_dict()) == names
    assert NoOp(3).state_dict() == {}


def test_state_is_loaded_in_place():
    source, target = set_randomly(BatchNorm(3)), BatchNorm(3)
    source.forward(rows(5, 3))
    held = {**target.parameters, **target.buffers}
    target.load_state_dict(source.state_dict())
    for key, array in source.state_dict().items():
        np.testing.assert_array_equal(held[key], array, strict=True)
    source.forward(rows(5, 3, seed=1))
    assert target.num_batches.tolist() == [1]


def test_loaded_state_is_cast():
    norm = LayerNorm(2)
    norm.load_state_dict({"gain": [2, 3], "bias": np.array([0.5, 1.5])})
    np.testing.assert_array_equal(norm.parameters["gain"], np.float32([2, 3]), strict=True)
    np.testing.assert_array_equal(norm.parameters["bias"], np.float32([0.5, 1.5]), strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, StateError, r"missing: \['bias'\], unexpected: none"),
        ({"beta": np.zeros(3)}, StateError, r"missing: none, unexpected: \['beta'\]"),
        ({"bias": np.zeros(2)}, ShapeError, r"bias must have shape \(3,\); got \(2,\)"),
        ({"bias": np.zeros((3, 1))}, ShapeError, r"bias must have shape \(3,\)"),
        ({"bias": np.zeros(3, complex)}, DTypeError, "bias must be castable to float32"),
        ({"num_batches": np.zeros(1)}, DTypeError, "num_batches must be castable to int64"),
        ({"bias": ["a", "b", "c"]}, DTypeError, "bias must be castable"),
        ({"bias": np.ma.zeros(3)}, DTypeError, "bias must be a plain array; got a masked one"),
        ({"beta": 0, 1: 0}, StateError, r"unexpected: \[1, 'beta'\]"),
    ],
)
def test_loading_is_all_or_nothing(change, error, message):
    norm = set_randomly(BatchNorm(3))
    before = norm.state_dict()
    state = {key: array + 1 for key, array in before.items()} | change
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(error, match=message):
        norm.load_state_dict(state)
    for key, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("state", [None, 3, [("gain", np.ones(3))]])
def test_a_state_is_a_mapping(state):
    with pytest.raises(StateError, match="a state must be a mapping of names to arrays"):
        LayerNorm(3).load_state_dict(state)


# ---- the base class, for those who derive from it -----------------------------------------------


class Scale(Normalizer):
    per_sample = True

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        return self.affine(x), x

    def backward(self, dy, cache):
        return self.affine_backward(dy, cache)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Normalizer(3)


def test_inference_is_forward_unless_defined():
    norm = set_randomly(Scale(3, dtype="float64"))
    x = rows(4, 3)
    np.testing.assert_array_equal(norm(x), norm.forward(x)[0])
    out = np.empty_like(x)
    assert norm(x, out=out) is out
    np.testing.assert_array_equal(out, norm(x))
    with pytest.raises(ShapeError, match=r"out must have x's shape, \(4, 3\); got \(2, 3\)"):
        norm(x, out=np.empty((2, 3)))
    with pytest.raises(DTypeError, match="out must have x's dtype, float64; got float32"):
        norm(x, out=np.empty((4, 3), "float32"))
    with pytest.raises(DTypeError, match="out must be a NumPy array; got list"):
        norm(x, out=[0.0])


def test_inference_by_batch_must_be_defined():
    norm = type("ByBatch", (Scale,), {"per_sample": False})(3)
    with pytest.raises(NotImplementedError, match="ByBatch has per_sample = False and must define"):
        norm(rows(4, 3))


@pytest.mark.parametrize("parameters", [{}, {"gain": False}, {"gain": False, "bias": False}])
def test_affine_never_returns_its_argument(parameters):
    norm = Scale(3, dtype="float64", **parameters)
    x = rows(4, 3)
    y, cache = norm.forward(x)
    dx, _ = norm.backward(x, cache)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(dx, x)


def test_sums_over_rows_run_in_float64():
    norm = Scale(1, dtype="float32")
    x = np.full((100_000, 1), 0.1, np.float32)
    _, cache = norm.forward(x)
    _, grads = norm.backward(x, cache)
    np.testing.assert_allclose(grads["bias"], 100_000 * np.float64(x[0]), rtol=1e-7)
