"""The fused loop over time: the bits of the loop step by step, whatever runs beside a row."""

import itertools

import numpy as np
import pytest

import reference_rnn
from fused_networks import (
    assert_close,
    assert_same_bits,
    draw,
    draw_state,
    every_norm,
    forward,
    gradients,
    make,
    most_norms,
)
from gradcheck import assert_gradient
from networks import CELLS, as_list, every_cell, every_dtype
from normlib._kernels import buffers

# ---- the loop step by step -----------------------------------------------------------------------


@every_cell
@every_norm
@every_dtype
@pytest.mark.parametrize(
    ("n_batch", "lengths", "options"),
    [
        (4, None, {}),
        (4, [3, 5, 0, 2], {"bidirectional": True, "num_layers": 2}),
        (1, None, {"num_layers": 2, "sizes": (1, 1)}),
        (9, [5, 1, 2, 3, 4, 5, 0, 5, 1], {"sizes": (3, 33)}),
    ],
    ids=["plain", "lengths", "one", "odd"],
)
def test_bits_of_the_loop_step_by_step(cell, norm, dtype, n_batch, lengths, options):
    rng = np.random.default_rng(0)
    one = make(cell, norm, dtype=dtype, **options)
    other = make(cell, norm, dtype=dtype, may_fuse=False, **options)
    x = draw(rng, dtype, 5, n_batch, one.input_size)
    state = draw_state(one, rng, n_batch)
    for initial in (None, state):
        arrays, cache = forward(one, x, initial, lengths)
        expected, other_cache = forward(other, x, initial, lengths)
        assert_same_bits(arrays, expected)
    dy, dstate = draw(rng, dtype, *arrays[0].shape), draw_state(one, rng, n_batch)
    actual = gradients(one, dy, cache, dstate)
    assert_close(actual, gradients(other, dy, other_cache, dstate), 32)
    # A cache fits either loop, and backward is pure.
    assert_same_bits(gradients(other, dy, cache, dstate), actual)
    assert_same_bits(
        gradients(one, dy, other_cache, dstate), gradients(other, dy, other_cache, dstate)
    )


@every_cell
@most_norms
@pytest.mark.parametrize(
    ("n_steps", "n_batch", "lengths"),
    [(0, 3, None), (4, 0, None), (0, 0, None), (4, 0, []), (4, 3, [0, 0, 0]), (0, 2, [0, 0])],
)
def test_nothing_to_do(cell, norm, n_steps, n_batch, lengths, share):
    share(3, True)
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, bidirectional=True, num_layers=2)
    x, state = draw(rng, np.float32, n_steps, n_batch, 5), draw_state(rnn, rng, n_batch)
    arrays, cache = forward(rnn, x, state, lengths)
    assert not arrays[0].any()
    assert_same_bits(arrays[1:], as_list(state))
    dy, dstate = draw(rng, np.float32, *arrays[0].shape), draw_state(rnn, rng, n_batch)
    dx, d_initial, grads = rnn.backward(dy, cache, dstate)
    assert not dx.any()
    assert_same_bits(as_list(d_initial), as_list(dstate))
    assert not any(array.any() for array in grads.values())


# ---- the equations -------------------------------------------------------------------------------


@every_cell
@most_norms
@every_dtype
@pytest.mark.parametrize("may_fuse", [True, False])
def test_oracle(cell, norm, dtype, may_fuse):
    """Errors grow by a few units in the last place of 1 at each time step."""
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, dtype=dtype, sizes=(7, 33), may_fuse=may_fuse)
    for name in rnn.parameters:
        if name.startswith("weight"):
            rnn.parameters[name] *= 0.5
    x, state = draw(rng, dtype, 8, 5, 7), draw_state(rnn, rng, 5)
    expected, _, _ = reference_rnn.run(rnn, x, state)
    (y, *_), _ = forward(rnn, x, state)
    scale = np.maximum(1, np.abs(expected).max(axis=(1, 2)))
    errors = np.abs(y - expected).max(axis=(1, 2)) / np.finfo(dtype).eps / scale
    assert (errors <= 8 * np.arange(1, 9)).all(), errors


@every_cell
@every_norm
@pytest.mark.parametrize(
    ("may_fuse", "lengths"), [(True, None), (True, [2, 3, 0]), (False, [2, 3, 0])]
)
def test_central_differences(cell, norm, may_fuse, lengths):
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, dtype=np.float64, sizes=(2, 3), may_fuse=may_fuse)
    x, state = draw(rng, np.float64, 3, 3, 2), draw_state(rnn, rng, 3)
    arrays, cache = forward(rnn, x, state, lengths)
    weights = [draw(rng, np.float64, *array.shape) for array in arrays]
    dstate = tuple(weights[1:]) if rnn.cell == "lstm" else weights[1]

    def loss():
        y, final, _ = rnn.forward(x, state, lengths)
        pairs = zip([y, *as_list(final)], weights, strict=True)
        return sum(np.sum(array * weight) for array, weight in pairs)

    actual = gradients(rnn, weights[0], cache, dstate)
    targets = [x, *as_list(state), *rnn.parameters.values()]
    for array, gradient in zip(targets, actual, strict=True):
        assert_gradient(gradient, loss, array)


# ---- input of every kind -------------------------------------------------------------------------


@every_cell
@most_norms
def test_layouts(cell, norm):
    """Strided, reversed, read-only, broadcast, unaligned, of the other dtype; states that alias."""
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, bidirectional=True)
    x, h = draw(rng, np.float32, 4, 3, 5), draw(rng, np.float32, 2, 3, 7)
    state = (h, h) if cell == "lstm" else h
    expected, cache = forward(rnn, x, state)
    dy = draw(rng, np.float32, *expected[0].shape)
    expected_gradients = gradients(rnn, dy, cache, state)
    wide = np.full((4, 3, 5, 100), np.nan, np.float32)
    wide[..., 50] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"x" + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    for view in (
        np.asfortranarray(x),
        wide[..., 50],
        x[::-1].copy()[::-1],
        x[..., ::-1].copy()[..., ::-1],
        read_only,
        unaligned,
        x.astype(np.float64),
        x.astype(x.dtype.newbyteorder()),
    ):
        actual, cache = forward(rnn, view, state)
        assert_same_bits(actual, expected)
        assert_same_bits(gradients(rnn, np.asfortranarray(dy), cache, state), expected_gradients)
    same = np.broadcast_to(x[:1, :1], x.shape)
    assert_same_bits(forward(rnn, same)[0], forward(rnn, same.copy())[0])
    one = np.lib.stride_tricks.as_strided(x, (1, 1, 5), (1 << 40, -(1 << 40), 4))
    assert_same_bits(forward(rnn, one)[0], forward(rnn, x[:1, :1].copy())[0])


@every_cell
@most_norms
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
@pytest.mark.parametrize("columns", [False, True])
def test_what_is_not_finite_stays_in_its_row(cell, norm, value, columns, share):
    share(2, columns)
    rng = np.random.default_rng(0)
    x = draw(rng, np.float32, 4, 9, 5)
    rnn, other = make(cell, norm), make(cell, norm, may_fuse=False)
    y, *final = forward(rnn, x)[0]
    dirty = x.copy()
    dirty[1, 4] = value
    with np.errstate(all="ignore"):
        actual, cache = forward(rnn, dirty)
        assert_same_bits(actual[:1], forward(other, dirty)[0][:1])
    rows = np.arange(9) != 4
    assert_same_bits([actual[0][:, rows]], [y[:, rows]])
    assert_same_bits([a[:, rows] for a in actual[1:]], [a[:, rows] for a in final])
    assert_same_bits([actual[0][0]], [y[0]])
    dy = draw(rng, np.float32, *y.shape)
    dx = rnn.backward(dy, cache)[0]
    expected = rnn.backward(dy, forward(rnn, x)[1])[0]
    assert_same_bits([dx[:, rows]], [expected[:, rows]])
    if np.isnan(value):
        assert np.isnan(actual[0][1:, 4]).any()


@every_cell
@most_norms
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
def test_what_is_not_finite_is_silent_in_both_loops(cell, norm, value):
    rng = np.random.default_rng(0)
    x = draw(rng, np.float32, 4, 3, 5)
    x[1, 1] = value
    dy = draw(rng, np.float32, 4, 3, 14)
    dy[2, 0], dy[3, 2] = value, -value
    both = [make(cell, norm, may_fuse=may, bidirectional=True) for may in (True, False)]
    for rnn in both:
        for suffix in ("", "_reverse"):
            rnn.parameters["bias_ih_l0" + suffix][0] = value
            rnn.parameters["bias_hh_l0" + suffix][0] = -value
    with np.errstate(all="raise"):
        (outputs, cache), (others, other_cache) = (forward(rnn, x, None, [4, 2, 3]) for rnn in both)
        some, other = gradients(both[0], dy, cache), gradients(both[1], dy, other_cache)
    for one, another in zip([*outputs, *some], [*others, *other], strict=True):
        assert one.shape == another.shape
        np.testing.assert_array_equal(np.isfinite(one), np.isfinite(another))


def test_memory_that_was_used_before_is_not_read():
    """What is saved for backward is written first, also in blocks full of NaN."""
    rng = np.random.default_rng(0)
    limit = buffers.get_limit()
    for cell, norm in itertools.product(CELLS, ("noop", "layer")):
        rnn = make(cell, norm, sizes=(16, 128))
        x, lengths = draw(rng, np.float32, 40, 33, 16), rng.integers(0, 41, 33)
        results = []
        for _ in range(2):
            arrays, cache = forward(rnn, x, lengths=lengths)
            results.append([*arrays, *gradients(rnn, arrays[0], cache)])
            for saved in (one.saved for one in cache.directions):
                for array in saved.values():
                    if array is not None:
                        array[...] = np.nan
            del cache, array, saved
        assert_same_bits(results[0], results[1])
    buffers.set_limit(limit)
