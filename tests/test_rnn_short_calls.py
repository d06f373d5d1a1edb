"""Calls that are checked in one go: the bits and the errors of those that are not."""

import copy

import numpy as np
import pytest

from fused_networks import (
    assert_same_bits,
    draw,
    draw_state,
    make,
)
from networks import as_list, every_cell, every_dtype
from normlib import errors


@every_cell
@pytest.mark.parametrize("norm", ["noop", "layer", "even", "per step"])
@every_dtype
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("n_steps", "n_batch"), [(1, 1), (1, 5), (4, 1), (3, 17), (2, 513)])
def test_a_short_call(cell, norm, dtype, num_layers, n_steps, n_batch):
    """Is checked in one go where all is plain, with the bits of one that is not."""
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, dtype=dtype, num_layers=num_layers)
    x, state = draw(rng, dtype, n_steps, n_batch, 5), draw_state(rnn, rng, n_batch)
    for given in (None, state):
        before = copy.deepcopy(given)
        y, final = rnn(x, given)
        if given is not None:
            assert_same_bits(as_list(given), as_list(before))
        strided = None if given is None else [array[:, ::-1].copy() for array in as_list(given)]
        if strided is not None:
            strided = [array[:, ::-1] for array in strided]
            strided = tuple(strided) if rnn.cell == "lstm" else strided[0]
        for other in ((np.asfortranarray(x), given), (x, strided), (x.tolist(), strided)):
            expected, expected_final = rnn(*other)
            assert_same_bits([y, *as_list(final)], [expected, *as_list(expected_final)])
        for one in (y, *as_list(final)):
            assert type(one) is np.ndarray
            assert one.flags.writeable
            assert not any(np.shares_memory(one, other) for other in (x, *as_list(state)))
        assert not np.shares_memory(y, as_list(final)[0])
        y_t, final_t = rnn.step(x[0], given)
        assert_same_bits([y_t], [y[0]])
        if n_steps == 1:
            assert_same_bits(as_list(final_t), as_list(final))


@every_cell
@pytest.mark.parametrize("norm", ["noop", "layer"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("n_steps", "n_batch"), [(1, 1), (1, 5), (4, 3)])
def test_a_short_call_of_two_directions(cell, norm, num_layers, n_steps, n_batch):
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, num_layers=num_layers, bidirectional=True)
    x, state = draw(rng, np.float32, n_steps, n_batch, 5), draw_state(rnn, rng, n_batch)
    for given in (None, state):
        y, final = rnn._layers.run(x, given)
        assert_same_bits([y, *as_list(final)], flat(rnn(x.tolist(), given)))
        assert_same_bits([y, *as_list(final)], flat(rnn.forward(x, given)[:2]))
        for one in (y, *as_list(final)):
            assert one.flags.carray
            assert not any(np.shares_memory(one, other) for other in (x, *as_list(state)))
    few = np.zeros((num_layers, n_batch, 7), np.float32)
    with pytest.raises(errors.ShapeError, match="layers · directions"):
        rnn(x, (few, few) if cell == "lstm" else few)


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_again(cell, bidirectional):
    """An array of lengths, a list of them and lengths of all T give the same bits, each time."""
    rng = np.random.default_rng(0)
    rnn = make(cell, "layer", num_layers=2, bidirectional=bidirectional)
    x = draw(rng, np.float32, 4, 5, 5)
    for lengths in (np.array([3, 0, 4, 1, 4]), np.array([1, 2, 3, 4, 0]), np.full(5, 4)):
        expected = flat(rnn(x.tolist(), lengths=lengths.tolist()))
        for given in (lengths, lengths.astype(np.uint8), lengths, lengths.tolist()):
            before = copy.deepcopy(given)
            assert_same_bits(flat(rnn(x, lengths=given)), expected)
            np.testing.assert_array_equal(given, before)
        if lengths.min() == 4:
            assert_same_bits(flat(rnn(x)), expected)
    for wrong in (np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 4, -1])):
        with pytest.raises(errors.ParameterError, match=r"between 0 and T = 4; got .* for row 4"):
            rnn(x, lengths=wrong)
    with pytest.raises(errors.ShapeError, match="lengths must have shape"):
        rnn(x, lengths=np.array([1]))
    with pytest.raises(errors.DTypeError, match="integers"):
        rnn(x, lengths=np.ones(5))


def flat(result):
    y, final = result
    return [y, *as_list(final)]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_short_call_is_checked(cell, n_steps, num_layers):
    rnn = make(cell, "layer", num_layers=num_layers)
    x = np.zeros((n_steps, 2, 5), np.float32)
    rnn(x)
    h = np.zeros((num_layers, 2, 7), np.float32)
    wrong = h if cell == "lstm" else (h, h)
    other = [h[:, :1].copy(), h[0], h[0, 0, 0], np.zeros((3, 2, 7), np.float32)]
    states = [wrong, (h,), (h, h, h), *[(h, array) if cell == "lstm" else array for array in other]]
    for state in states:
        with pytest.raises(errors.ShapeError, match="state"):
            rnn(x, state)
    for bad in (x[..., :4], x[0], x[np.newaxis]):
        with pytest.raises(errors.ShapeError, match="x must have shape"):
            rnn(bad.copy())
    for bad in (x.astype(np.int64), np.ma.masked_array(x)):
        with pytest.raises(errors.DTypeError, match="x must be"):
            rnn(bad)
