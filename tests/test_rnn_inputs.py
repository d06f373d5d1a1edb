"""What an RNN takes: layouts, types and shapes; and caches that keep to their forward."""

import copy

import numpy as np
import pytest

from networks import (
    LENGTHS,
    H,
    I,
    N,
    T,
    as_list,
    assert_equal_states,
    draw_state,
    every_cell,
    every_norm,
    like,
    make,
)
from normlib import errors

REFUSED = [np.int64, np.bool_, np.complex128, object, np.float16, "U1"]
if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant:
    REFUSED.append(np.longdouble)


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
