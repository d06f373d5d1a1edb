"""The RNN runtime: equations, gradients, the same bits in any batch, lengths, streaming."""

import numpy as np
import pytest

import normlib
import reference_rnn
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
    per_sample,
)
from normlib import errors

# ---- the equations -------------------------------------------------------------------------------


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

        def pick(given, row=row):
            return like(rnn, [a[:, [row]] for a in as_list(given)])

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
        (np.uint64([1, 2**63, 5, 4]), errors.ParameterError, f"got {2**63} for row 1"),
    ],
)
def test_lengths_are_checked(lengths, error, message):
    rnn = make("gru", "layer")
    for run in (rnn, rnn.forward):
        with pytest.raises(error, match=message):
            run(np.zeros((T, N, I)), None, lengths)


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
