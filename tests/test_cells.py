"""Cell kernels against float64 formulas, at every CPU level, dtype and thread count."""

import itertools

import numpy as np
import pytest

from normlib import _kernels

LEVELS = _kernels.available_levels()
DTYPES = (np.float32, np.float64)
THREADS = (1, 2, 3)
SIZES = (1, 7, 16, 33, 100)
ROWS = 5


def sigmoid(a):
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1, e) / (1 + e)


def split(a, n):
    return np.split(a, n, axis=1)


# Each oracle takes the inputs of its kernel and returns its outputs, by name.


def lstm_gates_forward(a_ih, a_hh, bias, c):
    i, f, g, o = split(a_ih + a_hh + bias, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    return {"gates": np.hstack([i, f, g, o]), "c_out": f * c + i * g}


def lstm_output_forward(gates, normed_c):
    tanh_c = np.tanh(normed_c)
    return {"tanh_c": tanh_c, "h": split(gates, 4)[3] * tanh_c}


def gru_forward(a_ih, a_hh, a_in, a_hn, bias, h):
    size = h.shape[1]
    b_rz, b_in, b_hn = np.split(bias, (2 * size, 3 * size))
    r, z = split(sigmoid(a_ih + a_hh + b_rz), 2)
    n = np.tanh(a_in + b_in + r * (a_hn + b_hn))
    return {
        "gates": np.hstack([r, z, n]),
        "hidden_n": a_hn + b_hn,
        "h_out": (1 - z) * n + z * h,
    }


def gru_reset_forward(a_ih, a_hh, bias, h):
    size = h.shape[1]
    r, z = split(sigmoid(a_ih + a_hh + bias[: 2 * size]), 2)
    return {"gates": np.hstack([r, z, np.zeros_like(r)]), "reset_h": r * h}


def gru_candidate_forward(a_in, a_hn, bias, h, gates):
    r, z, _ = split(gates, 3)
    n = np.tanh(a_in + a_hn + bias[2 * h.shape[1] :])
    return {"gates": np.hstack([r, z, n]), "h_out": (1 - z) * n + z * h}


def vanilla_forward(a, bias, relu):
    return {"h": np.maximum(a + bias, 0) if relu else np.tanh(a + bias)}


def normal(rng, *shape):
    return rng.standard_normal(shape)


def forward_cases(size, rng):
    """Kernel, its oracle, inputs and the widths of outputs, in the kernel's order."""
    wide = {n: lambda n=n: normal(rng, ROWS, n * size) for n in (1, 2, 3, 4)}
    bias = {n: lambda n=n: normal(rng, n * size) for n in (1, 3, 4)}

    def gates(n):
        return sigmoid(wide[n]())

    return [
        ("lstm_gates_forward", lstm_gates_forward,
         [wide[4](), wide[4](), bias[4](), wide[1]()], {"gates": 4, "c_out": 1}),
        ("lstm_output_forward", lstm_output_forward,
         [gates(4), wide[1]()], {"tanh_c": 1, "h": 1}),
        ("gru_forward", gru_forward,
         [wide[2](), wide[2](), wide[1](), wide[1](), bias[4](), wide[1]()],
         {"gates": 3, "hidden_n": 1, "h_out": 1}),
        ("gru_reset_forward", gru_reset_forward,
         [wide[2](), wide[2](), bias[3](), wide[1]()], {"gates": 3, "reset_h": 1}),
        ("gru_candidate_forward", gru_candidate_forward,
         [wide[1](), wide[1](), bias[3](), wide[1](), gates(3)], {"h_out": 1}),
        ("vanilla_forward", vanilla_forward,
         [wide[1](), bias[1]()], {"h": 1}),
    ]  # fmt: skip


def close(actual, expected, n_ulp):
    """Within n_ulp units in the last place, of 1 at least."""
    scale = np.finfo(actual.dtype).eps * np.maximum(1, np.abs(expected))
    np.testing.assert_array_less(np.abs(actual - expected), n_ulp * scale + 1e-300)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_forward_kernels_match_their_formulas(level, dtype, n_threads, size):
    module = _kernels.load("cells", level)
    for name, oracle, inputs, outputs in forward_cases(size, np.random.default_rng(size)):
        arrays = [np.asarray(array, dtype) for array in inputs]
        for relu in (True, False) if name == "vanilla_forward" else (None,):
            extra = () if relu is None else (relu,)
            expected = oracle(*(array.astype(float) for array in arrays), *extra)
            results = {key: np.zeros((ROWS, n * size), dtype) for key, n in outputs.items()}
            getattr(module, name)(*arrays, *results.values(), *extra, n_threads)
            if name == "gru_candidate_forward":
                results["gates"] = arrays[4]
            for key, result in results.items():
                # The sums before a nonlinearity are rounded, and its slope is at most 1.
                close(result, expected[key], 8)


def call(module, name, inputs, outputs, size, n_threads):
    """Run a forward kernel on inputs of one dtype; return its outputs."""
    inputs = [array.copy() for array in inputs]
    rows = max(len(array) for array in inputs if array.ndim == 2)
    results = [np.zeros((rows, n * size), inputs[0].dtype) for n in outputs.values()]
    extra = (False,) if name == "vanilla_forward" else ()
    getattr(module, name)(*inputs, *results, *extra, n_threads)
    return results


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_bits_depend_neither_on_rows_nor_on_threads(level, dtype, size):
    module = _kernels.load("cells", level)
    for name, _, inputs, outputs in forward_cases(size, np.random.default_rng(size)):
        arrays = [np.asarray(array, dtype) for array in inputs]
        whole = call(module, name, arrays, outputs, size, 1)
        for n_threads in (2, 3):
            assert_same_bits(call(module, name, arrays, outputs, size, n_threads), whole)
        one_row = [array[3:4] if array.ndim == 2 else array for array in arrays]
        alone = call(module, name, one_row, outputs, size, 1)
        assert_same_bits(alone, [array[3:4] for array in whole])


@pytest.mark.skipif("v4" not in LEVELS, reason="needs a CPU with v3 and v4")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_with_fma_give_equal_bits(dtype, size):
    v3, v4 = (_kernels.load("cells", level) for level in ("v3", "v4"))
    for name, _, inputs, outputs in forward_cases(size, np.random.default_rng(size)):
        arrays = [np.asarray(array, dtype) for array in inputs]
        assert_same_bits(
            call(v3, name, arrays, outputs, size, 1), call(v4, name, arrays, outputs, size, 1)
        )


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- backward: against central differences of the formulas, in float64 ---------------------------


def gradient(function, arrays, weights, which, step=1e-5):
    """Gradient of sum(weights · outputs) with respect to arrays[which], by central differences."""
    result = np.zeros_like(arrays[which])
    for index in np.ndindex(result.shape):
        values = []
        for sign in (1, -1):
            moved = [array.copy() for array in arrays]
            moved[which][index] += sign * step
            outputs = function(*moved)
            values.append(sum(np.sum(weights[key] * outputs[key]) for key in weights))
        result[index] = (values[0] - values[1]) / (2 * step)
    return result


@pytest.fixture(params=itertools.product(LEVELS, THREADS, (1, 7, 10)))
def setting(request):
    level, n_threads, size = request.param
    return _kernels.load("cells", level), n_threads, size, np.random.default_rng(size)


def assert_gradient(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-8)


def test_lstm_output_backward(setting):
    kernels, n_threads, size, rng = setting
    gates, normed_c = sigmoid(normal(rng, ROWS, 4 * size)), normal(rng, ROWS, size)
    dh = normal(rng, ROWS, size)
    d_normed_c, da = np.empty_like(dh), np.zeros_like(gates)
    kernels.lstm_output_backward(dh, gates, np.tanh(normed_c), d_normed_c, da, n_threads)
    inputs, weights = [gates, normed_c], {"h": dh}
    assert_gradient(d_normed_c, gradient(lstm_output_forward, inputs, weights, 1))
    d_gates = gradient(lstm_output_forward, inputs, weights, 0)
    o = split(gates, 4)[3]
    assert_gradient(split(da, 4)[3], split(d_gates, 4)[3] * o * (1 - o))
    assert not da[:, : 3 * size].any()


def test_lstm_gates_backward(setting):
    kernels, n_threads, size, rng = setting
    inputs = [normal(rng, *shape) for shape in ((ROWS, 4 * size),) * 2 + ((4 * size,),)]
    inputs.append(normal(rng, ROWS, size))
    gates = lstm_gates_forward(*inputs)["gates"]
    dc, dc_output = normal(rng, ROWS, size), normal(rng, ROWS, size)
    da = np.zeros_like(gates)
    before = dc.copy()
    kernels.lstm_gates_backward(before, dc_output, gates, inputs[3], da, before, n_threads)
    weights = {"c_out": dc + dc_output}
    assert_gradient(da, gradient(lstm_gates_forward, inputs, weights, 0))
    assert_gradient(before, gradient(lstm_gates_forward, inputs, weights, 3))


def test_gru_backward(setting):
    kernels, n_threads, size, rng = setting
    inputs = [normal(rng, ROWS, n * size) for n in (2, 2, 1, 1)]
    inputs += [normal(rng, 4 * size), normal(rng, ROWS, size)]
    saved = gru_forward(*inputs)
    dh = normal(rng, ROWS, size)
    da_rz, da_n, d_hidden_n = (np.empty((ROWS, n * size)) for n in (2, 1, 1))
    before = dh.copy()
    kernels.gru_backward(
        before, saved["gates"], saved["hidden_n"], inputs[5],
        da_rz, da_n, d_hidden_n, before, n_threads,
    )  # fmt: skip
    for which, actual in ((0, da_rz), (2, da_n), (3, d_hidden_n), (5, before)):
        assert_gradient(actual, gradient(gru_forward, inputs, {"h_out": dh}, which))


def test_gru_reset_and_candidate_backward(setting):
    kernels, n_threads, size, rng = setting
    a_ih, a_hh, a_in, a_hn = (normal(rng, ROWS, n * size) for n in (2, 2, 1, 1))
    bias, h, dh, d_reset_h = normal(rng, 3 * size), *(normal(rng, ROWS, size) for _ in range(3))

    def both(a_ih, a_in, h):
        reset = gru_reset_forward(a_ih, a_hh, bias, h)
        return {**gru_candidate_forward(a_in, a_hn, bias, h, reset["gates"]),
                "reset_h": reset["reset_h"]}  # fmt: skip

    inputs = [a_ih, a_in, h]
    gates = both(*inputs)["gates"]
    da_rz, da_n, before = np.empty_like(a_ih), np.empty_like(dh), dh.copy()
    kernels.gru_candidate_backward(before, gates, h, da_rz, da_n, before, n_threads)
    kernels.gru_reset_backward(d_reset_h, gates, h, da_rz, before, n_threads)
    weights = {"h_out": dh, "reset_h": d_reset_h}
    for which, actual in enumerate((da_rz, da_n, before)):
        assert_gradient(actual, gradient(both, inputs, weights, which))


@pytest.mark.parametrize("relu", [True, False])
def test_vanilla_backward(setting, relu):
    kernels, n_threads, size, rng = setting
    inputs = [normal(rng, ROWS, size), normal(rng, size)]
    dh = normal(rng, ROWS, size)
    h = vanilla_forward(*inputs, relu)["h"]
    da = np.empty_like(dh)
    kernels.vanilla_backward(dh, h, da, relu, n_threads)
    assert_gradient(da, gradient(lambda *a: vanilla_forward(*a, relu), inputs, {"h": dh}, 0))


@pytest.mark.parametrize("level", LEVELS)
def test_backward_kernels_in_float32(level):
    """The float32 kernels compute what the float64 ones do, to rounding."""
    kernels = _kernels.load("cells", level)
    rng = np.random.default_rng(0)
    size = 19

    def unit(n):
        return rng.uniform(0, 1, (ROWS, n * size))

    cases = [
        ("lstm_output_backward", [unit(1), unit(4), unit(1)], (1, 4)),
        ("lstm_gates_backward", [unit(1), unit(1), unit(4), unit(1)], (4, 1)),
        ("gru_backward", [unit(1), unit(3), unit(1), unit(1)], (2, 1, 1, 1)),
        ("gru_candidate_backward", [unit(1), unit(3), unit(1)], (2, 1, 1)),
        ("gru_reset_backward", [unit(1), unit(3), unit(1)], (2, 1)),
        ("vanilla_backward", [unit(1), unit(1)], (1,)),
    ]
    for name, inputs, outputs in cases:
        results = []
        for dtype in DTYPES:
            arrays = [array.astype(np.float32).astype(dtype) for array in inputs]
            out = [np.zeros((ROWS, n * size), dtype) for n in outputs]
            extra = (False,) if name == "vanilla_backward" else ()
            getattr(kernels, name)(*arrays, *out, *extra, 1)
            results.append(out)
        for single, double in zip(*results, strict=True):
            close(single, double, 6)


@pytest.mark.parametrize("n", [1, 5, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_column_sums_are_float64_sums_in_order(level, dtype, n):
    kernels = _kernels.load("cells", level)
    a = normal(np.random.default_rng(n), 50, n).astype(dtype)
    expected = np.ones(n)
    for row in a:
        expected += row
    for n_threads in THREADS:
        guarded = np.ones(n + 8)  # what lies behind the sums must not be written
        kernels.add_column_sums(a, guarded[:n], n_threads)
        np.testing.assert_array_equal(guarded[:n], expected)
        np.testing.assert_array_equal(guarded[n:], 1)


# ---- the functions themselves --------------------------------------------------------------------


def dense(dtype):
    """Arguments over the whole range: where results saturate, vanish, or are subnormal."""
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    edge = 120 if dtype is np.float32 else 760
    tiny = np.geomspace(float(info.smallest_subnormal), 1, 20_000)
    return np.concatenate(
        [
            np.linspace(-edge, edge, 100_001),
            np.linspace(-20, 20, 100_001),
            rng.standard_normal(100_000),
            tiny,
            -tiny,
            [0, -0.0, info.max, -info.max, np.inf, -np.inf],
        ]
    ).astype(dtype)


ORACLES = {"exp": np.exp, "tanh": np.tanh, "sigmoid": sigmoid}


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ORACLES)
def test_functions_are_within_4_ulp(name, level, dtype, n_threads):
    x = dense(dtype).reshape(1, -1)
    y = np.empty_like(x)
    getattr(_kernels.load("cells", level), name)(x, y, n_threads)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exact = ORACLES[name](x.astype(np.float64 if dtype is np.float32 else np.longdouble))
        rounded = exact.astype(dtype)
        ulp = np.spacing(np.minimum(np.abs(rounded), np.finfo(dtype).max)).astype(exact.dtype)
        error = np.abs(y.astype(exact.dtype) - exact) / ulp
    finite = np.isfinite(rounded)
    assert error[finite].max() <= 4
    np.testing.assert_array_equal(y[~finite], rounded[~finite])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_functions_saturate_and_keep_nan_and_signs(level, dtype):
    kernels = _kernels.load("cells", level)
    x = np.array([[np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30]], dtype)
    expected = {
        "exp": [np.inf, 0, np.nan, 1, 1, np.inf, 0],
        "sigmoid": [1, 0, np.nan, 0.5, 0.5, 1, 0],
        "tanh": [1, -1, np.nan, 0.0, -0.0, 1, -1],
    }
    for name, values in expected.items():
        y = np.empty_like(x)
        getattr(kernels, name)(x, y, 1)
        np.testing.assert_array_equal(y[0], np.array(values, dtype))
        np.testing.assert_array_equal(np.signbit(y[0, :2]), np.signbit(values[:2]))
        np.testing.assert_array_equal(np.signbit(y[0, 3:]), np.signbit(values[3:]))


@pytest.mark.parametrize("level", LEVELS)
def test_nan_stays_in_its_row_and_column(level):
    kernels = _kernels.load("cells", level)
    rng = np.random.default_rng(0)
    size = 9
    a_ih, a_hh, bias = normal(rng, ROWS, 4 * size), normal(rng, ROWS, 4 * size), np.zeros(4 * size)
    c = normal(rng, ROWS, size)
    a_ih[2, size + 3] = np.nan
    gates, c_out = np.empty_like(a_ih), np.empty_like(c)
    kernels.lstm_gates_forward(a_ih, a_hh, bias, c, gates, c_out, 1)
    assert np.argwhere(np.isnan(gates)).tolist() == [[2, size + 3]]
    assert np.argwhere(np.isnan(c_out)).tolist() == [[2, 3]]
    for relu in (True, False):
        h, da = np.empty_like(c), np.empty_like(c)
        kernels.vanilla_forward(np.where(np.isnan(c_out), np.nan, c), bias[:size], h, relu, 1)
        assert np.argwhere(np.isnan(h)).tolist() == [[2, 3]]
        kernels.vanilla_backward(np.ones_like(c), h, da, relu, 1)
        assert np.argwhere(np.isnan(da)).tolist() == [[2, 3]]
