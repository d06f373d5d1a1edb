"""The RNN runtime: equations, gradients, lengths, streaming, state, files, errors."""

import copy
import pickle

import numpy as np
import pytest

import normlib
import reference_rnn
from normlib import errors

T, N, I, H = 5, 4, 3, 4
LENGTHS = [3, 5, 0, 2]
REFUSED = [np.int64, np.bool_, np.complex128, object, np.float16, "U1"]
if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant:
    REFUSED.append(np.longdouble)
CELLS = {
    "tanh": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "classic": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
}
NORMS = {
    "noop": {"norm": None},
    "layer": {"norm": "layer", "norm_config": {"eps": 1e-3}},
    "batch": {"norm": "batch", "norm_config": {"eps": 1e-3, "steps": 3, "momentum": 0.3}},
}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_norm = pytest.mark.parametrize("norm", NORMS)
per_sample = pytest.mark.parametrize("norm", ["noop", "layer"])


def make(cell, norm, /, *, seed=0, sizes=(I, H), **config):
    """An RNN none of whose parameters and statistics is at its starting value."""
    config = {**CELLS[cell], **NORMS[norm], "dtype": np.float64, **config}
    rnn = normlib.RNN(*sizes, rng=seed, **config)
    rng = np.random.default_rng(seed + 1)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape)
    for normalizer in rnn.normalizers.values():
        for key in normalizer.buffers.keys() & {"running_mean", "running_var"}:
            normalizer.buffers[key] += rng.uniform(0, 1, normalizer.buffers[key].shape)
    return rnn


def as_list(state):
    return list(state) if isinstance(state, tuple) else [state]


def like(rnn, arrays):
    return tuple(arrays) if rnn.cell == "lstm" else arrays[0]


def draw_state(rnn, rng, n_batch=N):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), n_batch, rnn.hidden_size)
    return like(rnn, [rng.standard_normal(shape) for _ in range(2)])


def assert_equal_states(actual, expected):
    for one, other in zip(as_list(actual), as_list(expected), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- the equations ------------------------------------------------------------------------------


@every_cell
@every_norm
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, True)])
def test_equations(cell, norm, lengths, num_layers, bidirectional):
    rng = np.random.default_rng(0)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
        rnn = make(cell, norm, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype)
        x, state = rng.standard_normal((T, N, I)).astype(dtype), draw_state(rnn, rng)
        state = like(rnn, [array.astype(dtype) for array in as_list(state)])
        for training in (False, True):
            y, final, statistics = reference_rnn.run(rnn, x, state, lengths, training=training)
            if training:
                actual_y, actual_final, _ = rnn.forward(x, state, lengths)
            else:
                actual_y, actual_final = rnn(x, state, lengths)
            assert actual_y.dtype == dtype
            np.testing.assert_allclose(actual_y, y, rtol=tolerance, atol=tolerance)
            for one, other in zip(as_list(actual_final), final, strict=True):
                assert one.dtype == dtype
                np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
            for name, array in rnn.state_dict().items():
                np.testing.assert_allclose(array, statistics[name], rtol=tolerance, atol=tolerance)


@every_cell
@every_norm
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_are_central_differences(cell, norm, options, lengths):
    """Of x, of the initial state and of each parameter."""
    rnn = make(cell, norm, **options)
    if norm == "batch":
        # A step of one row takes running statistics as constants. So that they are, each step has
        # its own row of them.
        rnn = make(cell, norm, **options, norm_config={"eps": 1e-3, "steps": T})
    before = rnn.state_dict()
    rng = np.random.default_rng(1)
    x, state = rng.standard_normal((T, N, I)), draw_state(rnn, rng)
    dy, dfinal = rng.standard_normal((T, N, rnn.output_size)), draw_state(rnn, rng)

    def loss(*_):
        for site, normalizer in rnn.normalizers.items():
            for key, array in normalizer.buffers.items():
                array[...] = before[f"{site}.{key}"]
        y, final, _ = rnn.forward(x, state, lengths)
        pairs = zip(as_list(final), as_list(dfinal), strict=True)
        return np.sum(y * dy) + sum(np.sum(one * weight) for one, weight in pairs)

    _, _, cache = rnn.forward(x, state, lengths)
    dx, dstate, grads = rnn.backward(dy, cache, dfinal)
    assert list(grads) == list(rnn.parameters)
    targets = [(x, dx), *zip(as_list(state), as_list(dstate), strict=True)]
    targets += [(rnn.parameters[name], gradient) for name, gradient in grads.items()]
    step = 1e-6
    for array, gradient in targets:
        assert gradient.shape == array.shape
        assert gradient.dtype == np.float64
        entries = list(np.ndindex(array.shape))
        for index in (entries[i] for i in rng.permutation(len(entries))[:5]):
            value = array[index]
            array[index] = value + step
            high = loss()
            array[index] = value - step
            low = loss()
            array[index] = value
            assert gradient[index] == pytest.approx((high - low) / (2 * step), rel=2e-5, abs=2e-7)


def test_start():
    rnn = normlib.RNN(I, H, cell="lstm", norm="layer", num_layers=2, bidirectional=True, rng=5)
    same = normlib.RNN(
        I, H, norm="layer", num_layers=2, bidirectional=True, rng=np.random.default_rng(5)
    )
    for name, array in rnn.parameters.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, same.parameters[name])
        if name.startswith("weight"):
            assert 0.4 < np.abs(array).max() <= 1 / np.sqrt(H)
        else:
            assert np.all(array == (1 if name.endswith("gain") else 0))
    assert rnn.parameters["weight_ih_l1"].shape == (4 * H, 2 * H)
    batch = normlib.RNN(I, H, norm="batch")
    assert np.all(batch.parameters["norm_ih_l0.gain"] == np.float32(0.1))


SITES = {
    "tanh": {"norm_a": (H, {"gain"})},
    "lstm": {
        "norm_ih": (4 * H, {"gain"}),
        "norm_hh": (4 * H, {"gain"}),
        "norm_c": (H, {"gain", "bias"}),
    },
    "gru": {
        "norm_ih": (2 * H, {"gain"}),
        "norm_hh": (2 * H, {"gain"}),
        "norm_in": (H, {"gain"}),
        "norm_hn": (H, {"gain"}),
    },
}
SITES |= {"relu": SITES["tanh"], "classic": SITES["gru"]}


@every_cell
def test_sites(cell):
    rnn = make(cell, "layer", bidirectional=True)
    expected = {}
    for suffix in ("_l0", "_l0_reverse"):
        for site, entry in SITES[cell].items():
            expected[site + suffix] = entry
    assert {
        name: (normalizer.features, set(normalizer.parameters))
        for name, normalizer in rnn.normalizers.items()
    } == expected
    assert all(normalizer.eps == 1e-3 for normalizer in rnn.normalizers.values())
    names = [f"{site}.{key}" for site, (_, keys) in expected.items() for key in keys]
    assert rnn.parameters.keys() >= set(names)
    assert len(rnn.parameters) == len(names) + 8


# ---- promises ------------------------------------------------------------------------------------


@every_cell
@per_sample
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_a_row_are_the_same_in_any_batch(cell, norm, dtype):
    for size in (H, 33):
        rnn = make(cell, norm, sizes=(7, size), dtype=dtype, num_layers=2, bidirectional=True)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((T, 33, 7)).astype(dtype)
        lengths = rng.integers(0, T + 1, 33)
        y, state = rnn(x, None, lengths)
        trained, _, _ = rnn.forward(x, None, lengths)
        np.testing.assert_array_equal(trained, y)
        for rows in (slice(0, 1), slice(13, 14), slice(5, 12), slice(None, None, -1)):
            some, some_state = rnn(x[:, rows], None, lengths[rows])
            np.testing.assert_array_equal(some, y[:, rows])
            expected = like(rnn, [array[:, rows] for array in as_list(state)])
            assert_equal_states(some_state, expected)


@every_cell
@every_norm
def test_bits_are_the_same_with_any_number_of_threads(cell, norm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 256, 16)).astype(np.float32)
    results = []
    try:
        for n_threads in (1, 2, 3):
            normlib.set_num_threads(n_threads)
            rnn = make(cell, norm, sizes=(16, 128), dtype=np.float32)
            y, _, cache = rnn.forward(x)
            dx, _, grads = rnn.backward(np.cos(y), cache)
            # Weight gradients are BLAS's, which has threads of its own.
            kept = [array for name, array in grads.items() if not name.startswith("weight")]
            results.append([y, dx, *kept])
    finally:
        normlib.set_num_threads(None)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@every_cell
@every_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_step_gives_the_bits_of_the_whole_sequence(cell, norm, dtype):
    rnn = make(cell, norm, num_layers=2, dtype=dtype)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((T, N, I)).astype(dtype), draw_state(rnn, rng)
    y, final = rnn(x, state)
    for t in range(T):
        y_t, state = rnn.step(x[t], state, step=t)
        assert y_t.shape == (N, H)
        np.testing.assert_array_equal(y_t, y[t])
    assert_equal_states(state, final)


def test_step_is_for_networks_that_look_back():
    with pytest.raises(errors.ParameterError, match="bidirectional=False"):
        make("gru", "layer", bidirectional=True).step(np.zeros((N, I)))
    with pytest.raises(errors.ParameterError, match="step"):
        make("gru", "layer").step(np.zeros((N, I)), step=-1)
    with pytest.raises(errors.ShapeError, match=r"x must have shape \(N, 3\); got \(5, 4, 3\)"):
        make("gru", "layer").step(np.zeros((T, N, I)))


# ---- lengths -------------------------------------------------------------------------------------


@every_cell
@per_sample
def test_a_shorter_row_is_that_row_alone(cell, norm):
    rnn = make(cell, norm, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((T, N, I)), draw_state(rnn, rng)
    dy, dfinal = rng.standard_normal((T, N, 2 * H)), draw_state(rnn, rng)
    for row, length in enumerate(LENGTHS):
        x[length:, row] = np.nan  # padding is never read
        dy[length:, row] = np.nan
    y, final, cache = rnn.forward(x, state, LENGTHS)
    dx, dstate, grads = rnn.backward(dy, cache, dfinal)
    sums = {name: np.zeros_like(array) for name, array in grads.items()}
    for row, length in enumerate(LENGTHS):
        pick = lambda given, row=row: like(rnn, [a[:, [row]] for a in as_list(given)])  # noqa: E731
        alone, alone_final, alone_cache = rnn.forward(x[:length, [row]], pick(state))
        alone_dx, alone_dstate, alone_grads = rnn.backward(
            dy[:length, [row]], alone_cache, pick(dfinal)
        )
        np.testing.assert_array_equal(y[:length, [row]], alone)
        np.testing.assert_array_equal(dx[:length, [row]], alone_dx)
        assert_equal_states(pick(final), alone_final)
        assert_equal_states(pick(dstate), alone_dstate)
        assert not y[length:, row].any()
        assert not dx[length:, row].any()
        for name, gradient in alone_grads.items():
            sums[name] += gradient
    for name, total in sums.items():
        np.testing.assert_allclose(grads[name], total, rtol=1e-10, atol=1e-12)
    assert_equal_states(rnn(x, state, LENGTHS)[1], final)


@every_norm
def test_full_lengths_are_no_lengths(norm):
    x = np.random.default_rng(0).standard_normal((T, N, I))
    results = []
    for lengths in (None, [T] * N, np.full(N, T, np.uint8)):
        rnn = make("lstm", norm, bidirectional=True)
        results.append(rnn.forward(x, None, lengths)[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([1, 2], errors.ShapeError, r"lengths must have shape \(4,\).*got \(2,\)"),
        ([1.0, 2, 3, 4], errors.DTypeError, "lengths must be integers; got dtype float64"),
        ([True] * N, errors.DTypeError, "lengths must be integers; got dtype bool"),
        ([1, 2, 6, 4], errors.ParameterError, "between 0 and T = 5; got 6 for row 2"),
        ([1, -1, 5, 4], errors.ParameterError, "between 0 and T = 5; got -1 for row 1"),
    ],
)
def test_lengths_are_checked(lengths, error, message):
    rnn = make("gru", "layer")
    for run in (rnn, rnn.forward):
        with pytest.raises(error, match=message):
            run(np.zeros((T, N, I)), None, lengths)


def test_steps_of_one_row_leave_the_running_statistics():
    rnn = make("lstm", "batch", norm_config={"steps": T})
    before = rnn.state_dict()
    rnn.forward(np.random.default_rng(0).standard_normal((T, 3, I)), None, [2, 5, 3])
    after = rnn.state_dict()
    for site in rnn.normalizers:
        batches = after[f"{site}.num_batches"] - before[f"{site}.num_batches"]
        assert batches.tolist() == [1, 1, 1, 0, 0]
        changed = after[f"{site}.running_mean"] != before[f"{site}.running_mean"]
        assert changed.any(axis=1).tolist() == [True, True, True, False, False]


@every_cell
@every_norm
@pytest.mark.parametrize("lengths", [None, "zero"])
def test_no_steps(cell, norm, lengths):
    rnn = make(cell, norm, bidirectional=True)
    rng = np.random.default_rng(0)
    state, dfinal = draw_state(rnn, rng), draw_state(rnn, rng)
    n_steps = 0 if lengths is None else T
    lengths = None if lengths is None else [0] * N
    before = rnn.state_dict()
    assert_equal_states(rnn(np.ones((n_steps, N, I)), state, lengths)[1], state)
    if norm == "batch":
        with pytest.raises(errors.ShapeError, match="got 0 in x of shape"):
            rnn.forward(np.ones((n_steps, N, I)), state, lengths)
        return
    y, final, cache = rnn.forward(np.ones((n_steps, N, I)), state, lengths)
    dx, dstate, grads = rnn.backward(np.ones((n_steps, N, 2 * H)), cache, dfinal)
    assert y.shape == (n_steps, N, 2 * H)
    assert not y.any()
    assert dx.shape == (n_steps, N, I)
    assert not dx.any()
    assert_equal_states(final, state)
    assert_equal_states(dstate, dfinal)
    assert not any(gradient.any() for gradient in grads.values())
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@every_cell
@every_norm
def test_no_rows(cell, norm):
    rnn = make(cell, norm, num_layers=2)
    assert rnn.step(np.zeros((0, I)))[0].shape == (0, H)
    y, state = rnn(np.zeros((T, 0, I)))
    assert y.shape == (T, 0, H)
    if norm == "batch":
        with pytest.raises(errors.ShapeError, match="got 0 in x of shape"):
            rnn.forward(np.zeros((T, 0, I)))
        return
    y, state, cache = rnn.forward(np.zeros((T, 0, I)))
    dx, dstate, grads = rnn.backward(y, cache)
    assert y.shape == (T, 0, H)
    assert dx.shape == (T, 0, I)
    for array in as_list(state) + as_list(dstate):
        assert array.shape == (2, 0, H)
    assert not any(gradient.any() for gradient in grads.values())


# ---- inputs and caches ---------------------------------------------------------------------------


@every_cell
@every_norm
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_backward_is_pure_and_keeps_to_its_forward(cell, norm, options):
    rnn = make(cell, norm, **options)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((T, N, I)), draw_state(rnn, rng)
    dy, dfinal = rng.standard_normal((T, N, rnn.output_size)), draw_state(rnn, rng)
    y, final, cache = rnn.forward(x, state)
    dy_before, dfinal_before = dy.copy(), [array.copy() for array in as_list(dfinal)]
    first = rnn.backward(dy, cache, dfinal)
    np.testing.assert_array_equal(dy, dy_before)
    assert_equal_states(dfinal, like(rnn, dfinal_before))
    for array in (x, y, *as_list(state), *as_list(final)):
        array[...] = 77.0
    for name in rnn.parameters:
        rnn.parameters[name] *= -3
    rnn.forward(rng.standard_normal((T, N, I)))
    second = rnn.backward(dy, cache, dfinal)
    np.testing.assert_array_equal(first[0], second[0])
    assert_equal_states(first[1], second[1])
    for name, gradient in first[2].items():
        np.testing.assert_array_equal(gradient, second[2][name])


@every_cell
@every_norm
def test_inputs_of_any_layout_and_left_alone(cell, norm):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, N, I))
    rnn = make(cell, norm)
    state = draw_state(rnn, rng)
    expected, expected_final = make(cell, norm)(x, state)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float64).reshape(x.shape)
    misaligned[...] = x
    wide = np.zeros((T, 2 * N, 2 * I))
    wide[:, ::2, ::2] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder())
    layouts = [np.asfortranarray(x), wide[:, ::2, ::2], misaligned, readonly, swapped, x.tolist()]
    for given in layouts:
        for run in (rnn, make(cell, norm).forward):
            before = copy.deepcopy(given)
            states = [np.asfortranarray(array) for array in as_list(state)]
            y, final, *_ = run(given, like(rnn, states))
            np.testing.assert_array_equal(given, before)
            assert_equal_states(like(rnn, states), state)
            if run is rnn or norm != "batch":
                np.testing.assert_array_equal(y, expected)
                assert_equal_states(final, expected_final)


def test_input_is_cast_to_the_dtype_of_the_network():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, N, I))
    for dtype in (np.float32, np.float64):
        rnn = make("lstm", "layer", dtype=dtype)
        state = draw_state(rnn, rng)
        for given in (np.float32, np.float64):
            y, final = rnn(x.astype(given), state)
            assert y.dtype == final[0].dtype == final[1].dtype == dtype
            np.testing.assert_array_equal(y, rnn(x.astype(given).astype(dtype), state)[0])


@pytest.mark.parametrize("dtype", REFUSED)
def test_other_types_are_refused(dtype):
    rnn = make("lstm", "layer")
    x, state = np.zeros((T, N, I)), draw_state(rnn, np.random.default_rng(0))
    _, _, cache = rnn.forward(x)
    with pytest.raises(errors.DTypeError, match="x must be float32 or float64"):
        rnn(x.astype(dtype))
    with pytest.raises(errors.DTypeError, match="x must be float32 or float64"):
        rnn.step(x[0].astype(dtype))
    with pytest.raises(errors.DTypeError, match=r"^state\[1\] must be .*np.asarray\(state\[1\], "):
        rnn(x, (state[0], state[1].astype(dtype)))
    with pytest.raises(errors.DTypeError, match="dy must be float32 or float64"):
        rnn.backward(np.zeros((T, N, H), dtype), cache)
    with pytest.raises(errors.DTypeError, match=r"dstate\[0\] must be float32 or float64"):
        rnn.backward(np.zeros((T, N, H)), cache, (state[0].astype(dtype), state[1]))
    bias = np.zeros(4 * H, dtype)
    with pytest.raises(errors.DTypeError, match="bias_ih_l0 must be float32 or float64"):
        rnn.load_state_dict({**rnn.state_dict(), "bias_ih_l0": bias})
    with pytest.raises(errors.DTypeError, match="bias_ih_l0 must be float32 or float64"):
        rnn.parameters["bias_ih_l0"] = bias


def test_masked_arrays_are_refused():
    rnn = make("gru", "layer")
    x, h = np.zeros((T, N, I)), np.zeros((1, N, H))
    y, _, cache = rnn.forward(x)
    masked = np.ma.masked_array
    for call in (
        lambda: rnn(masked(x)),
        lambda: rnn(x, masked(h)),
        lambda: rnn(x, None, masked(LENGTHS, mask=[1, 0, 0, 0])),
        lambda: rnn.backward(masked(y), cache),
        lambda: rnn.backward(y, cache, masked(h)),
        lambda: rnn.parameters.update(bias_ih_l0=masked(np.zeros(3 * H))),
        lambda: rnn.load_state_dict({**rnn.state_dict(), "bias_ih_l0": masked(np.zeros(3 * H))}),
    ):
        with pytest.raises(errors.DTypeError, match="must be a plain array; got a masked one"):
            call()


def test_a_value_too_large_for_float32_becomes_infinite_in_silence():
    rnn = make("relu", "noop", dtype=np.float32)
    x = np.zeros((T, N, I))
    x[2, 1, 0] = 1e300
    with np.errstate(all="raise"):
        y, _ = rnn(x)
        rnn.parameters["bias_ih_l0"] = np.full(H, 1e300)
    assert np.isfinite(y[:2]).all()
    assert not np.isfinite(y[2, 1]).all()
    assert np.isfinite(y[:, 0]).all()
    assert np.isposinf(rnn.parameters["bias_ih_l0"]).all()


def test_shapes_are_checked():
    lstm, gru = make("lstm", "layer"), make("gru", "layer", bidirectional=True)
    x, h = np.zeros((T, N, I)), np.zeros((1, N, H))
    _, _, cache = lstm.forward(x)
    for call, message in [
        (lambda: lstm(x[0]), r"x must have shape \(T, N, 3\), time first; got \(4, 3\)"),
        (lambda: lstm(x[:, :, :2]), r"x must have shape \(T, N, 3\).* got \(5, 4, 2\)"),
        (lambda: lstm(x, h), r"state must be a tuple \(h, c\).*got an array of shape \(1, 4, 4\)"),
        (lambda: lstm(x, (h,)), "got 1 arrays"),
        (lambda: lstm(x, (h, h[:, :3])), r"state\[1\] must have shape \(1, 4, 4\).*\(1, 3, 4\)"),
        (lambda: gru(x, h), r"state must have shape \(2, 4, 4\).*got \(1, 4, 4\)"),
        (lambda: gru(x, (h, h)), r"state must have shape"),
        (lambda: lstm.backward(np.zeros((T, N, I)), cache), r"dy must have the shape of y, \(5, 4"),
        (lambda: lstm.backward(np.zeros((T, N, H)), cache, h), r"dstate must be a tuple \(h, c\)"),
        (lambda: lstm.backward(np.zeros((T, N, H)), cache, (h, h[0])), r"dstate\[1\] must have"),
    ]:
        with pytest.raises(errors.ShapeError, match=message):
            call()


# ---- parameters and state ------------------------------------------------------------------------


def test_parameters_are_live():
    rnn = make("lstm", "layer")
    x = np.ones((T, N, I))
    before, _ = rnn(x)
    assert rnn.parameters["norm_c_l0.gain"] is rnn.normalizers["norm_c_l0"].parameters["gain"]
    weight = rnn.parameters["weight_ih_l0"]
    weight *= 2
    first, _ = rnn(x)
    assert not np.array_equal(before, first)
    rnn.parameters["norm_c_l0.gain"] *= 2
    assert not np.array_equal(first, rnn(x)[0])
    new = np.ones_like(weight, np.float32)
    rnn.parameters["weight_ih_l0"] = new  # copied into the live array
    assert rnn.parameters["weight_ih_l0"] is weight
    np.testing.assert_array_equal(weight, new)
    with pytest.raises(errors.ShapeError, match=r"bias_ih_l0 must have shape \(16,\); got \(1,\)"):
        rnn.parameters["bias_ih_l0"] = [0.0]
    with pytest.raises(KeyError):
        rnn.parameters["weight"] = weight
    with pytest.raises(TypeError, match="fixed"):
        del rnn.parameters["bias_ih_l0"]
    assert "norm_c_l0.gain" in repr(rnn.parameters)


@every_cell
@every_norm
def test_state_dict_round_trip(cell, norm):
    one = make(cell, norm, num_layers=2, bidirectional=True)
    two = make(cell, norm, num_layers=2, bidirectional=True, seed=9)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    state = one.state_dict()
    assert state.keys() >= one.parameters.keys()
    two.load_state_dict(state)
    np.testing.assert_array_equal(one(x)[0], two(x)[0])
    for array in state.values():
        array[...] = 0  # copies: neither network notices
    np.testing.assert_array_equal(one(x)[0], two(x)[0])
    assert one(x)[0].any()


def test_load_state_dict_is_all_or_nothing():
    rnn = make("lstm", "batch")
    before = rnn.state_dict()
    other = make("lstm", "batch", seed=9).state_dict()
    bad = {
        **other,
        "bias_ih_l0": np.zeros(3),
        "extra": np.zeros(1),
        "norm_hh_l0.gain": np.zeros(4 * H, complex),
    }
    del bad["weight_hh_l0"], bad["norm_ih_l0.running_mean"]
    with pytest.raises(errors.StateError) as caught:
        rnn.load_state_dict(bad)
    for part in (
        "weight_hh_l0 is missing",
        "norm_ih_l0.running_mean is missing",
        "extra is unexpected",
        "bias_ih_l0 must have shape (16,), got (3,)",
        "norm_hh_l0.gain must be float32 or float64; got complex128",
    ):
        assert part in str(caught.value)
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_is_undone_if_a_normalizer_refuses():
    class Picky(normlib.LayerNorm):
        def load_state_dict(self, state):
            if np.any(np.asarray(state["gain"]) == 13):
                raise ValueError("unlucky")
            super().load_state_dict(state)

    rnn = make("lstm", "layer", norm=Picky)
    before = rnn.state_dict()
    new = {name: array + 1 for name, array in before.items()}
    new["norm_c_l0.gain"][...] = 13
    with pytest.raises(ValueError, match="unlucky"):
        rnn.load_state_dict(new)
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@every_cell
@every_norm
def test_copies_are_independent(cell, norm):
    rnn = make(cell, norm, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    expected, _ = rnn(x)
    for twin in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn)):
        np.testing.assert_array_equal(twin(x)[0], expected)
        twin.forward(x)
        for name in twin.parameters:
            twin.parameters[name] *= 2
        assert not np.array_equal(twin(x)[0], expected)
        np.testing.assert_array_equal(rnn(x)[0], expected)


def test_config_and_repr():
    rnn = normlib.RNN(I, H, cell="gru", norm=normlib.LayerNorm, reset_after=False)
    twin = normlib.RNN.from_config(rnn.get_config())
    assert twin.get_config() == rnn.get_config()
    assert repr(rnn) == (
        "RNN(3, 4, cell='gru', norm='layer', num_layers=1, bidirectional=False, "
        "nonlinearity='tanh', reset_after=False, norm_config={}, dtype='float32')"
    )


# ---- normalizers of one's own --------------------------------------------------------------------


class Recorder(normlib.NoOp):
    """Writes down which steps it is called for, and with how many rows."""

    min_rows = 2
    log: list

    def __call__(self, x, *, step=0, out=None):
        self.log.append(("infer", step, len(x)))
        return super().__call__(x, step=step, out=out)

    def forward(self, x, *, step=0, mask=None):
        self.log.append(("forward", step, len(x)))
        return super().forward(x, step=step, mask=mask)

    def forward_frozen(self, x, *, step=0):
        self.log.append(("frozen", step, len(x)))
        return super().forward(x, step=step)


def recorded(run, **options):
    log = []

    def factory(features, **config):
        normalizer = Recorder(features, **config)
        normalizer.log = log
        return normalizer

    rnn = normlib.RNN(I, H, cell="rnn", norm=factory, **options)
    run(rnn)
    return log


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_step_calls_the_normalizer_with_the_valid_rows(bidirectional):
    x = np.zeros((4, 3, I))
    log = recorded(lambda rnn: rnn.forward(x, None, [1, 3, 2]), bidirectional=bidirectional)
    calls = [("forward", 0, 3), ("forward", 1, 2), ("frozen", 2, 1)]
    assert [entry for entry in log if entry[0] != "infer"] == calls * (1 + bidirectional)
    log = recorded(lambda rnn: rnn.step(x[0], step=7))
    assert log[0] == ("infer", 7, 3)


class Failing(normlib.BatchNorm):
    """Fails at one step."""

    def forward(self, x, *, step=0, mask=None):
        result = super().forward(x, step=step, mask=mask)
        if step == 3:
            raise RuntimeError("no")
        return result

    def backward(self, dy, cache):
        raise RuntimeError("no way back")


@every_cell
def test_an_error_names_the_step_and_leaves_the_state(cell):
    rnn = make(cell, "batch", norm=Failing, num_layers=2, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    before = rnn.state_dict()
    with pytest.raises(RuntimeError, match="no") as caught:
        rnn.forward(x)
    assert caught.value.__notes__ == ["at time step 3 of layer 0"]
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    y, _, cache = rnn.forward(x[:3])
    with pytest.raises(RuntimeError) as caught:
        rnn.backward(y, cache)
    assert caught.value.__notes__ == ["in backward, at time step 2 of layer 1, reverse"]


def test_a_keyboard_interrupt_leaves_the_state():
    class Interrupted(normlib.BatchNorm):
        def forward(self, x, *, step=0, mask=None):
            if step == 2:
                raise KeyboardInterrupt
            return super().forward(x, step=step, mask=mask)

    rnn = make("gru", "batch", norm=Interrupted)
    before = rnn.state_dict()
    with pytest.raises(KeyboardInterrupt):
        rnn.forward(np.random.default_rng(0).standard_normal((T, N, I)))
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_results_of_a_wrong_shape_or_dtype_are_refused():
    class Short(normlib.LayerNorm):
        def __call__(self, x, *, step=0, out=None):
            return super().__call__(x, step=step)[:, :-1]

        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return dx.astype(np.float16), grads

    rnn = make("lstm", "layer", norm=Short)
    with pytest.raises(errors.PluginError, match=r"norm_ih_l0 must return .*\(4, 16\).*\(4, 15\)"):
        rnn(np.zeros((T, N, I)))
    y, _, cache = rnn.forward(np.zeros((T, N, I)))
    with pytest.raises(errors.PluginError, match=r"norm_c_l0 must return .* float64.* float16"):
        rnn.backward(y, cache)
    with pytest.raises(errors.PluginError, match="normalizers of 16 features and dtype float32"):
        normlib.RNN(I, H, norm=lambda features, **config: normlib.LayerNorm(2, **config))
