"""What is kept between calls: packed weights and row functions; and caches for backward."""

import copy
import itertools
import pickle
import threading
import time

import numpy as np
import pytest

import normlib
from fused_networks import (
    NORMS,
    assert_same_bits,
    draw,
    draw_state,
    every_norm,
    forward,
    gradients,
    make,
    most_norms,
    use_level,
)
from networks import CELLS, as_list, every_cell
from normlib import _kernels, memory

# ---- packed weights ------------------------------------------------------------------------------


@every_cell
@most_norms
def test_changed_parameters_are_seen(cell, norm):
    """Each of them, in place, by assignment, and by loading."""
    rng = np.random.default_rng(0)
    one, other = make(cell, norm), make(cell, norm, may_fuse=False)
    x, state = draw(rng, np.float32, 3, 2, 5), draw_state(one, rng, 2)
    last = forward(one, x, state)[0]

    def check():
        nonlocal last
        actual = forward(one, x, state)[0]
        assert_same_bits(actual, forward(other, x, state)[0])
        assert any(a.tobytes() != b.tobytes() for a, b in zip(actual, last, strict=True))
        last = actual

    for name in one.parameters:
        for rnn in (one, other):
            rnn.parameters[name].flat[-1] += 1
        check()
        for rnn in (one, other):
            rnn.parameters[name] = rnn.parameters[name] * 0.75
        check()
    state_dict = make(cell, norm, seed=5).state_dict()
    for rnn in (one, other):
        rnn.load_state_dict(state_dict)
    check()


def test_a_changed_attribute_is_seen():
    """A normalizer may offer another function by any of its attributes."""

    class Switched(normlib.LayerNorm):
        on = True

        def __init__(self, features, **config):
            super().__init__(features, **config)
            self.on = True

        def row_functions(self, *, training):
            rows = normlib.LayerNorm.row_functions(self, training=training)
            return rows if self.on else rows._replace(forward=None, backward=None)

    rnn, plain = make("gru", "noop", norm=Switched), make("gru", "noop")
    x = np.ones((2, 3, 5), np.float32)
    before = rnn(x)[0]
    for normalizer in rnn.normalizers.values():
        normalizer.on = False
    for name in plain.parameters:
        plain.parameters[name] = rnn.parameters[name]
    assert_same_bits([rnn(x)[0]], [plain(x)[0]])
    for normalizer in rnn.normalizers.values():
        normalizer.on = True
    assert_same_bits([rnn(x)[0], rnn.step(x[0])[0]], [before, before[0]])


def test_packed_weights_are_kept():
    rnn = make("lstm", "layer")
    x = np.ones((2, 2, 5), np.float32)
    rnn(x)
    plan = rnn._directions[0]._fused._plan
    rnn.parameters["norm_ih_l0.gain"] += 1
    rnn.forward(x)
    assert rnn._directions[0]._fused._plan is plan
    rnn.parameters["weight_hh_l0"][0, 0] = np.float32(-0.0)
    rnn(x)
    plan = rnn._directions[0]._fused._plan
    rnn.parameters["weight_hh_l0"][0, 0] = np.float32(0.0)
    rnn(x)
    assert rnn._directions[0]._fused._plan is not plan


@pytest.mark.parametrize(("n_threads", "columns"), [(1, False), (2, False), (3, True)])
def test_python_threads_infer_while_weights_change(n_threads, columns, share):
    """None crashes, and once the weights rest, the results are theirs."""
    share(n_threads, columns)
    rnn = make("lstm", "layer", sizes=(40, 64))
    x = draw(np.random.default_rng(0), np.float32, 6, 3, 40)
    sets = [make("lstm", "layer", sizes=(40, 64), seed=seed).state_dict() for seed in (0, 7)]
    stop = threading.Event()
    failures = []

    def infer():
        try:
            while not stop.is_set():
                y, _ = rnn(x)
                assert np.isfinite(y).all()
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=infer) for _ in range(2)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 0.3
    for state in itertools.cycle(sets):
        rnn.load_state_dict(state)
        if time.monotonic() > end:
            break
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures
    fresh = make("lstm", "layer", sizes=(40, 64))
    fresh.load_state_dict(rnn.state_dict())
    assert_same_bits([rnn(x)[0]], [fresh(x)[0]])


@every_cell
def test_weights_that_change_while_they_are_packed(cell, monkeypatch):
    """The values that later calls compare with are those of which the packed weights are."""
    rnn, x = make(cell, "layer"), np.ones((2, 2, 5), np.float32)
    merge = type(rnn._layers.cell).merge_biases

    def slow_merge(*arguments):
        merged = merge(*arguments)
        for array in rnn.parameters.values():
            array *= 0.5
        return merged

    with monkeypatch.context() as patch:
        patch.setattr(type(rnn._layers.cell), "merge_biases", slow_merge)
        rnn(x)
    fresh = make(cell, "layer")
    fresh.load_state_dict(rnn.state_dict())
    assert_same_bits([rnn(x)[0]], [fresh(x)[0]])


# ---- caches --------------------------------------------------------------------------------------


@every_cell
@every_norm
def test_a_cache_stays_what_it_was(cell, norm):
    """Whatever becomes of the parameters, of x, y and the states; and backward is pure."""
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, num_layers=2, bidirectional=True)
    x, state = draw(rng, np.float32, 4, 3, 5), draw_state(rnn, rng, 3)
    y, final, cache = rnn.forward(x, state, [4, 1, 3])
    dy, dstate = draw(rng, np.float32, *y.shape), draw_state(rnn, rng, 3)
    before = dy.copy(), copy.deepcopy(dstate)
    expected = gradients(rnn, dy, cache, dstate)
    assert_same_bits(gradients(rnn, dy, cache, dstate), expected)
    assert_same_bits([dy, *as_list(dstate)], [before[0], *as_list(before[1])])
    copies = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
    for array in [x, y, *as_list(state), *as_list(final), *rnn.parameters.values()]:
        array[...] = np.nan
    rnn(np.ones_like(x))
    rnn.forward(np.ones_like(x))
    for one in (cache, *copies):
        assert_same_bits(gradients(rnn, dy, one, dstate), expected)


@pytest.mark.parametrize(
    ("cell", "plain", "normalized", "without_gates"),
    [("lstm", 5, 15, 10), ("gru", 5, 11, 7), ("classic", 4, 10, 10), ("tanh", 1, 2, 2)],
)
def test_what_a_cache_holds(cell, plain, normalized, without_gates):
    """In multiples of H for each row, beside the input, the weights and the initial state."""
    x = np.zeros((6, 8, 5), np.float32)
    n_bytes = 6 * 8 * 16 * 4
    # What is large is more than half of what is kept.
    fits = 2 * normalized * n_bytes
    cases = [(None, fits, plain), ("layer", fits, normalized), ("layer", fits - 1, without_gates)]
    for norm, limit, expected in cases:
        memory.set_limit(limit)
        rnn = normlib.RNN(5, 16, norm=norm, **CELLS[cell])
        _, _, cache = rnn.forward(x)
        saved = {id(a): a.nbytes for a in cache.directions[0].saved.values() if a is not None}
        memory.set_limit(None)
        assert sum(saved.values()) == expected * n_bytes


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", _kernels.available_levels())
def test_gates_made_again_have_the_same_bits(cell, norm, dtype, level, share, monkeypatch):
    use_level(monkeypatch, level)
    rng = np.random.default_rng(0)
    rnn = make(cell, norm, dtype=dtype, sizes=(5, 19))
    for n_steps, n_batch, lengths in ((3, 1, None), (5, 9, [5, 2, 0, 1, 1, 4, 5, 5, 3])):
        x, state = draw(rng, dtype, n_steps, n_batch, 5), draw_state(rnn, rng, n_batch)
        dy, dstate = draw(rng, dtype, n_steps, n_batch, 19), draw_state(rnn, rng, n_batch)
        share(1, False)
        expected = gradients(rnn, dy, rnn.forward(x, state, lengths)[2], dstate)
        memory.set_limit(0)
        for n_threads, columns in ((1, False), (3, False), (3, True)):
            share(n_threads, columns)
            _, _, cache = rnn.forward(x, state, lengths)
            assert cache.directions[0].saved["gates"] is None
            assert_same_bits(gradients(rnn, dy, cache, dstate), expected)
        memory.set_limit(None)


@every_cell
@most_norms
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn))])
def test_copies_of_a_network(cell, norm, twin):
    rng = np.random.default_rng(0)
    rnn = make(cell, norm)
    x = draw(rng, np.float32, 3, 2, 5)
    expected, cache = forward(rnn, x)
    other = twin(rnn)
    assert other.path == rnn.path
    assert other._directions[0]._fused._plan is None
    assert_same_bits(forward(other, x)[0], expected)
    dy = np.ones_like(expected[0])
    assert_same_bits(gradients(other, dy, cache), gradients(rnn, dy, cache))
    for array in other.parameters.values():
        array += 1
    forward(other, x)
    assert_same_bits(forward(rnn, x)[0], expected)


@most_norms
def test_memory_is_not_shared(norm):
    rng = np.random.default_rng(0)
    rnn = make("lstm", norm)
    x, state = draw(rng, np.float32, 3, 2, 5), draw_state(rnn, rng, 2)
    inputs = [x, *state, *rnn.parameters.values()]
    before = [array.copy() for array in inputs]
    y, final = rnn(x, state)
    y_training, final_training, cache = rnn.forward(x, state)
    dx, dstate, grads = rnn.backward(y, cache, final)
    arrays = [y, *final, y_training, *final_training, dx, *dstate, *grads.values()]
    for one, other in itertools.combinations([*inputs, *arrays], 2):
        assert not np.shares_memory(one, other)
    assert_same_bits(inputs, before)
