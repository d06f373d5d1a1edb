"""The fused loop has the same bits in any batch, by any threads, at any CPU level."""

import itertools

import numpy as np
import pytest

from fused_networks import (
    STEPS,
    assert_close,
    assert_same_bits,
    draw,
    draw_state,
    forward,
    gradients,
    make,
    most_norms,
    use_level,
)
from networks import as_list, every_cell, every_dtype
from normlib import _kernels
from normlib.rnn import fused, fused_training


@every_cell
@most_norms
@pytest.mark.parametrize("sizes", [(7, 33), (33, 7), (100, 100)])
def test_a_row_has_the_same_bits_in_any_batch(cell, norm, sizes):
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, sizes=sizes)
    x, state = draw(rng, np.float32, 4, 33, sizes[0]), draw_state(rnn, rng, 33)
    y, *final = forward(rnn, x, state)[0]
    for n in range(1, 34):
        place = int(rng.integers(34 - n))
        rows = slice(place, place + n)
        part = [array[:, rows] for array in as_list(state)]
        actual, final_part = rnn(x[:, rows], tuple(part) if rnn.cell == "lstm" else part[0])
        assert_same_bits([actual], [y[:, rows]])
        assert_same_bits(as_list(final_part), [array[:, rows] for array in final])
    order = rng.permutation(33)
    assert_same_bits([forward(rnn, x[:, order])[0][0]], [forward(rnn, x)[0][0][:, order]])


@every_cell
@most_norms
@pytest.mark.parametrize("sizes", [(7, 33), (33, 7), (100, 100), (3, 1)])
def test_lengths_in_any_order_and_steps(cell, norm, sizes):
    """A row ends where its length says, as if it were alone; and by `step` it is the same."""
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, sizes=sizes)
    lengths = rng.integers(0, 7, 12)
    x, state = draw(rng, np.float32, 6, 12, sizes[0]), draw_state(rnn, rng, 12)
    y, *final = forward(rnn, x, state, lengths)[0]
    for row, length in enumerate(lengths):
        one = [np.ascontiguousarray(array[:, [row]]) for array in as_list(state)]
        now = tuple(one) if rnn.cell == "lstm" else one[0]
        for t in range(length):
            y_t, now = rnn.step(x[t, [row]], now, step=t)
            assert_same_bits([y_t[0]], [y[t, row]])
        assert not y[length:, row].any()
        assert_same_bits(as_list(now), [array[:, [row]] for array in final])


@pytest.mark.parametrize("norm", ["layer", "per step"])
def test_steps_know_their_number(norm):
    rng = np.random.default_rng(0)
    rnn = make("gru", norm)
    x = draw(rng, np.float32, STEPS + 3, 2, 5)
    y, final = rnn(x)
    state = None
    for t in range(len(x)):
        y_t, state = rnn.step(x[t], state, step=t)
        assert_same_bits([y_t], [y[t]])
    assert_same_bits([state], [final])
    for late in (STEPS, 2**40, 2**63 - 1, 2**70):
        last, _ = rnn.step(x[0], step=STEPS - 1)
        assert_same_bits([rnn.step(x[0], step=late)[0]], [last])
        assert_same_bits([rnn.step(x[0].tolist(), step=late)[0]], [last])  # converted first


LENGTHS = {
    "full": lambda rng, n: None,
    "lengths": lambda rng, n: rng.integers(0, 6, n),
    "one row long": lambda rng, n: np.where(np.arange(n) == n // 2, 5, 1),
}


@every_cell
@most_norms
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("columns", [False, True])
def test_threads(cell, norm, lengths, columns, share):
    """Outputs and gradients have the same bits; also with more threads than rows or panels."""
    rng = np.random.default_rng(0)
    counts = (1, 2, 3, 4) if cell == "lstm" else (1, 3)
    for n_batch, sizes in ((1, (7, 33)), (19, (4, 100))):
        rnn = make(cell, norm, sizes=sizes)
        x, state = draw(rng, np.float32, 5, n_batch, sizes[0]), draw_state(rnn, rng, n_batch)
        dy = draw(rng, np.float32, 5, n_batch, sizes[1])
        per_row = LENGTHS[lengths](rng, n_batch)
        expected = None
        for n_threads in counts:
            share(n_threads, columns)
            arrays, cache = forward(rnn, x, state, per_row)
            actual = [*arrays, *gradients(rnn, dy, cache)]
            expected = expected or actual
            assert_same_bits(actual, expected)


def test_threads_are_used(share):
    """That is, the fixture does what it says."""
    one = make("lstm", "layer")._directions[0]._fused
    schedule = fused.Schedule(5, 2, None, reverse=False)
    for n_threads, columns in itertools.product((2, 3, 4), (False, True)):
        share(n_threads, columns)
        assert one._threads(schedule, 2) == (columns, n_threads)


@every_cell
@pytest.mark.parametrize("norm", ["noop", "layer", "per step"])
@every_dtype
def test_levels(cell, norm, dtype, monkeypatch, share):
    """v3 and v4 have the same bits, forward and backward, in both ways of sharing."""
    levels = [level for level in _kernels.available_levels() if level != "baseline"]
    rng = np.random.default_rng(0)
    x, dy = draw(rng, dtype, 4, 6, 33), draw(rng, dtype, 4, 6, 7)
    expected = None
    for level, columns in itertools.product(levels, (False, True)):
        with monkeypatch.context() as patch:
            use_level(patch, level)
            assert fused.kernels.__name__.split(".")[-2] == level
            share(2, columns)
            rnn = make(cell, norm, sizes=(33, 7), dtype=dtype)
            arrays, cache = forward(rnn, x, lengths=[4, 2, 0, 3, 1, 4])
            actual = [*arrays, *gradients(rnn, dy, cache)]
        expected = expected or actual
        assert_same_bits(actual, expected)


@every_cell
@most_norms
def test_baseline(cell, norm, monkeypatch):
    rng = np.random.default_rng(0)
    x, dy = draw(rng, np.float32, 4, 6, 33), draw(rng, np.float32, 4, 6, 7)
    results = []
    for may_fuse in (True, False):
        with monkeypatch.context() as patch:
            use_level(patch, "baseline")
            rnn = make(cell, norm, sizes=(33, 7), may_fuse=may_fuse)
            arrays, cache = forward(rnn, x)
            results.append((arrays, gradients(rnn, dy, cache)))
    assert_same_bits(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], 32)


@every_cell
@most_norms
@pytest.mark.parametrize("columns", [False, True])
def test_parts(cell, norm, columns, share, monkeypatch):
    """A sequence in many calls: the same outputs, and gradients that are summed otherwise."""
    share(2, columns)
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, num_layers=2, bidirectional=True)
    x, state = draw(rng, np.float32, 7, 6, 5), draw_state(rnn, rng, 6)
    dy, dstate = draw(rng, np.float32, 7, 6, 14), draw_state(rnn, rng, 6)
    lengths = [7, 3, 0, 5, 6, 1]
    arrays, cache = forward(rnn, x, state, lengths)
    expected = gradients(rnn, dy, cache, dstate)
    monkeypatch.setattr(fused_training, "BACKWARD_ROWS", 12)
    assert_close(gradients(rnn, dy, cache, dstate), expected, 32)
    monkeypatch.setattr(fused, "CALL_PRODUCTS", 1)
    actual, cache = forward(rnn, x, state, lengths)
    assert_same_bits(actual, arrays)
    assert_close(gradients(rnn, dy, cache, dstate), expected, 32)


def test_a_long_backward_has_the_bits_of_any_thread_count(share):
    """With more rows than are summed at once, of the products and of their gradients."""
    rng = np.random.default_rng(0)
    rnn = make("lstm", "layer", sizes=(3, 33))
    x, dy = draw(rng, np.float32, 90, 17, 3), draw(rng, np.float32, 90, 17, 33)
    lengths = rng.integers(60, 91, 17)
    assert lengths.sum() > fused_training.BACKWARD_ROWS
    expected = None
    for n_threads, columns in ((1, False), (2, False), (4, False), (2, True), (3, True)):
        share(n_threads, columns)
        _, _, cache = rnn.forward(x, lengths=lengths)
        actual = gradients(rnn, dy, cache)
        expected = expected or actual
        assert_same_bits(actual, expected)
