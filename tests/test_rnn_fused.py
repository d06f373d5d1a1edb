"""The fused loop over time: the bits of the loop step by step, whatever runs beside a row."""

import copy
import itertools
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import normlib
import reference_rnn
from gradcheck import assert_gradient
from normlib import _kernels, threads
from normlib._kernels import buffers
from normlib.normalizers.rows import RowFunctions
from normlib.rnn import fused

CELLS = {
    "tanh": {"cell": "rnn"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "classic": {"cell": "gru", "reset_after": False},
    "lstm": {"cell": "lstm"},
}
STEPS = 3


class PerStep(normlib.LayerNorm):
    """A layer norm with a fixed gain of its own at each of the first steps."""

    def __init__(self, features, **config):
        super().__init__(features, **config)
        gains = 1 + np.sin(np.arange(STEPS * features)).reshape(STEPS, features) / 2
        self.gains = gains.astype(self.dtype)

    def __call__(self, x, *, step=0, out=None):
        return self.forward(x, step=step)[0]

    def forward(self, x, *, step=0, mask=None):
        gain = self.gains[min(step, STEPS - 1)]
        bias = self.parameters.get("bias")
        y, mean, rstd = normlib.layer_norm_forward(x, gain, bias, eps=self.eps)
        return y, (x, mean, rstd, gain)

    def backward(self, dy, cache):
        x, mean, rstd, gain = cache
        dx, _, dbias = normlib.layer_norm_backward(dy, x, mean, rstd, gain)
        grads = {key: np.zeros_like(array) for key, array in self.parameters.items()}
        return dx, grads | {key: dbias for key in grads if key == "bias"}

    def row_functions(self, *, training):
        rows = normlib.LayerNorm.row_functions(self, training=training)
        return rows._replace(parameters=(self.gains, rows.parameters[1]), names=(None, "bias"))


def alternating(first):
    """A factory of normalizers that are the identity at every second site."""
    made = itertools.count(first)

    def create(features, *, bias, dtype):
        norm = normlib.NoOp if next(made) % 2 else normlib.LayerNorm
        return norm(features, bias=bias, dtype=dtype)

    return create


def norm_config(norm):
    return {
        "noop": {"norm": None},
        "layer": {"norm": "layer", "norm_config": {"eps": 1e-3}},
        "no gain": {"norm": "layer", "norm_config": {"gain": False}},
        "even": {"norm": alternating(0)},
        "odd": {"norm": alternating(1)},
        "per step": {"norm": PerStep, "norm_config": {"gain": False}},
    }[norm]


NORMS = ("noop", "layer", "no gain", "even", "odd", "per step")
every_cell = pytest.mark.parametrize("cell", CELLS)
every_norm = pytest.mark.parametrize("norm", NORMS)
most_norms = pytest.mark.parametrize("norm", ["noop", "layer"])
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def make(cell, norm, /, *, sizes=(5, 7), may_fuse=True, seed=0, **config):
    """An RNN none of whose parameters is at its starting value."""
    rnn = normlib.RNN(*sizes, rng=seed, **{**CELLS[cell], **norm_config(norm), **config})
    rng = np.random.default_rng(seed + 1)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape).astype(array.dtype)
    for one in rnn._directions:
        one.may_fuse = may_fuse
    assert (rnn.path.inference == rnn.path.training == "fused") == may_fuse
    return rnn


def as_list(state):
    return list(state) if isinstance(state, tuple) else [state]


def draw(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def draw_state(rnn, rng, n_batch):
    shape = (rnn.num_layers * rnn.num_directions, n_batch, rnn.hidden_size)
    state = tuple(draw(rng, rnn.dtype, *shape) for _ in range(2))
    return state if rnn.cell == "lstm" else state[0]


def forward(rnn, x, state=None, lengths=None):
    """All arrays of inference, and of training, which must be the same."""
    y, final = rnn(x, state, lengths)
    y_training, final_training, cache = rnn.forward(x, state, lengths)
    arrays = [y, *as_list(final)]
    assert_same_bits(arrays, [y_training, *as_list(final_training)])
    return arrays, cache


def gradients(rnn, dy, cache, dstate=None):
    dx, d_initial, grads = rnn.backward(dy, cache, dstate)
    assert list(grads) == list(rnn.parameters)
    return [dx, *as_list(d_initial), *grads.values()]


def assert_same_bits(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes(), np.argwhere(one != other)[:5]


def assert_close(actual, expected, ulps):
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        scale = max(1.0, float(np.abs(other).max(initial=0)))
        np.testing.assert_allclose(one, other, 0, ulps * np.finfo(other.dtype).eps * scale)


@pytest.fixture
def share(monkeypatch):
    """``share(n_threads, columns)``: that many threads, for work of any size."""
    monkeypatch.setattr(fused, "SHARED_PRODUCTS", 1)
    monkeypatch.setattr(fused, "SHARED_STEP_PRODUCTS", 1)
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 1)

    def share(n_threads, columns):
        monkeypatch.setattr(fused, "FEW_ROWS", 1 << 20 if columns else 0)
        normlib.set_num_threads(n_threads)

    yield share
    normlib.set_num_threads(None)


def use_level(monkeypatch, level):
    """Put the kernels of a CPU level where modules have imported those of another."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "normlib":
            continue
        for key, value in list(vars(module).items()):
            kernel = getattr(value, "__name__", "").rpartition(".")[2]
            if isinstance(value, type(sys)) and kernel in _kernels.KERNELS:
                monkeypatch.setattr(module, key, _kernels.load(kernel, level))


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


# ---- the same bits everywhere --------------------------------------------------------------------


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
        assert_same_bits([rnn.step(x[0], step=late)[0]], [rnn.step(x[0], step=STEPS - 1)[0]])


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
    monkeypatch.setattr(fused, "BACKWARD_ROWS", 12)
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
    assert lengths.sum() > fused.BACKWARD_ROWS
    expected = None
    for n_threads, columns in ((1, False), (2, False), (4, False), (2, True), (3, True)):
        share(n_threads, columns)
        _, _, cache = rnn.forward(x, lengths=lengths)
        actual = gradients(rnn, dy, cache)
        expected = expected or actual
        assert_same_bits(actual, expected)


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
    errors = []

    def infer():
        try:
            while not stop.is_set():
                y, _ = rnn(x)
                assert np.isfinite(y).all()
        except Exception as error:
            errors.append(error)

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
    assert not errors
    fresh = make("lstm", "layer", sizes=(40, 64))
    fresh.load_state_dict(rnn.state_dict())
    assert_same_bits([rnn(x)[0]], [fresh(x)[0]])


@every_cell
def test_weights_that_change_while_they_are_packed(cell, monkeypatch):
    """The values that later calls compare with are those of which the packed weights are."""
    rnn, x = make(cell, "layer"), np.ones((2, 2, 5), np.float32)
    merge = type(rnn._cell).merge_biases

    def slow_merge(*arguments):
        merged = merge(*arguments)
        for array in rnn.parameters.values():
            array *= 0.5
        return merged

    with monkeypatch.context() as patch:
        patch.setattr(type(rnn._cell), "merge_biases", slow_merge)
        rnn(x)
    fresh = make(cell, "layer")
    fresh.load_state_dict(rnn.state_dict())
    assert_same_bits([rnn(x)[0]], [fresh(x)[0]])


# ---- which loop runs -----------------------------------------------------------------------------


class Doubled:
    """Not a normalizer; it comes before one in the order of inheritance."""

    def __call__(self, x, *, step=0, out=None):
        return 2 * super().__call__(x, step=step)

    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return 2 * y, cache

    def backward(self, dy, cache):
        return super().backward(2 * dy, cache)


class Mixed(Doubled, normlib.LayerNorm):
    pass


class Overridden(normlib.LayerNorm):
    __call__ = Doubled.__dict__["__call__"]


class OwnForward(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return y + 1, cache


class OwnBackward(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return 3 * dx, grads


class Between(normlib.LayerNorm):
    """Overrides nothing."""


class Below(OwnForward):
    """Inherits what was overridden."""


class Beside(Between, OwnForward):
    """Inherits what was overridden by the second of its bases."""


class Again(OwnForward):
    """Says that the functions fit."""

    def row_functions(self, *, training):
        return normlib.LayerNorm.row_functions(self, training=training)


class ForwardAlone(normlib.LayerNorm):
    """Offers no compiled gradient."""

    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(backward=None)


@pytest.mark.parametrize("norm", [OwnForward, OwnBackward, Below, Beside, Mixed])
def test_an_override_in_python_is_called(norm):
    rnn = normlib.RNN(3, 4, norm=norm, rng=0)
    assert rnn.path.inference == rnn.path.training == "stepwise"
    assert rnn.path.reason == f"{norm.__name__} at norm_ih_l0 has no compiled row functions"
    x = np.random.default_rng(0).standard_normal((3, 2, 3)).astype(np.float32)
    plain = normlib.RNN(3, 4, rng=0)
    y, _, cache = rnn.forward(x)
    expected, _, expected_cache = plain.forward(x)
    if norm is OwnBackward:
        dx, _, _ = rnn.backward(np.ones_like(y), cache)
        assert not np.allclose(dx, plain.backward(np.ones_like(y), expected_cache)[0])
    else:
        assert not np.allclose(y, expected)


def test_overrides_that_need_no_python():
    for norm in (Between, Again):
        assert normlib.RNN(3, 4, norm=norm).path == ("fused", "fused", "")


def test_a_compiled_row_without_its_gradient_is_for_inference_alone():
    rnn = normlib.RNN(3, 4, norm=ForwardAlone, rng=0, dtype=np.float64)
    assert rnn.path.inference == "fused"
    assert rnn.path.training == "stepwise"
    assert "norm_ih_l0" in rnn.path.reason
    plain = normlib.RNN(3, 4, rng=0, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((3, 2, 3))
    results = []
    for one in (rnn, plain):
        y, _, cache = one.forward(x)
        results.append(gradients(one, np.ones_like(y), cache))
    assert_close(results[0], results[1], 32)


@pytest.mark.parametrize("method", ["forward", "backward", "forward_frozen"])
def test_an_override_of_an_instance_is_called(method):
    rnn = make("gru", "layer")
    normalizer = rnn.normalizers["norm_hn_l0"]
    calls = []
    original = getattr(normalizer, method)

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    setattr(normalizer, method, counted)
    assert rnn.path.training == "stepwise"
    assert rnn.path.reason == "LayerNorm at norm_hn_l0 has no compiled row functions"
    y, _, cache = rnn.forward(np.ones((3, 2, 5), np.float32))
    rnn.backward(np.ones_like(y), cache)
    assert len(calls) == (0 if method == "forward_frozen" else 3)


def test_a_reason_is_told():
    rnn = make("gru", "layer", may_fuse=False)
    assert rnn.path == ("stepwise", "stepwise", "asked to go step by step")
    path = normlib.RNN(3, 4, norm="batch").path
    assert path.reason == "BatchNorm at norm_ih_l0 has no compiled row functions"


@pytest.mark.parametrize(
    "replace",
    {
        "strided": lambda gain: np.repeat(gain, 2)[::2],
        "double": lambda gain: gain.astype(np.float64),
        "swapped": lambda gain: gain.astype(gain.dtype.newbyteorder()),
        "read-only": lambda gain: np.frombuffer(gain.tobytes(), gain.dtype),
        "unaligned": lambda gain: np.frombuffer(b"x" + gain.tobytes(), gain.dtype, offset=1),
        "subclass": lambda gain: gain.view(np.recarray),
        "broadcast": lambda gain: np.broadcast_to(gain[:1], gain.shape),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_gain_may_be_any_array(replace):
    rng = np.random.default_rng(0)
    x = draw(rng, np.float32, 3, 2, 5)
    results = []
    for may_fuse in (True, False):
        rnn = make("lstm", "layer", may_fuse=may_fuse)
        normalizer = rnn.normalizers["norm_c_l0"]
        normalizer.parameters["gain"] = replace[1](normalizer.parameters["gain"])
        arrays, cache = forward(rnn, x)
        results.append([*arrays, *gradients(rnn, np.ones_like(arrays[0]), cache)])
    assert_close(results[0], results[1], 32)
    assert_same_bits(results[0][:3], results[1][:3])


@pytest.mark.parametrize("shape", [(8,), (1, 7), (3, 7), (0, 7), (7, 1), (0,), ()])
def test_a_gain_of_another_shape_is_refused(shape):
    for may_fuse in (True, False):
        rnn = make("lstm", "layer", may_fuse=may_fuse)
        rnn.normalizers["norm_c_l0"].parameters["gain"] = np.ones(shape, np.float32)
        x = np.ones((3, 2, 5), np.float32)
        with pytest.raises(ValueError, match="gain"):
            rnn(x)
        with pytest.raises(ValueError, match="gain"):
            rnn.forward(x)


def test_a_normalizer_that_became_another_is_refused():
    """Other features or another dtype than it was made with would run past the end of a row."""
    x = np.ones((3, 2, 5), np.float32)
    for name, value in (("features", 1000), ("dtype", np.dtype(np.float64))):
        for may_fuse in (True, False):
            rnn = make("lstm", "no gain", may_fuse=may_fuse)
            setattr(rnn.normalizers["norm_c_l0"], name, value)
            rnn.normalizers["norm_c_l0"].parameters.clear()
            assert rnn.path.inference == rnn.path.training == "stepwise"
            with pytest.raises((ValueError, TypeError)):
                rnn(x)
            with pytest.raises((ValueError, TypeError)):
                rnn.forward(x)


def test_too_many_parameters_are_refused():
    class Many(normlib.LayerNorm):
        def row_functions(self, *, training):
            rows = super().row_functions(training=training)
            return RowFunctions(rows.forward, rows.backward, (None,) * 5, (None,) * 5, 2)

    rnn = normlib.RNN(3, 4, norm=Many)
    x = np.ones((2, 2, 3), np.float32)
    for run in (rnn, rnn.forward):
        with pytest.raises(ValueError, match="at most 4 parameters; got 5") as caught:
            run(x)
        assert caught.value.__notes__ == ["in layer 0"]


@pytest.mark.parametrize("wrong", ["dtype", "swapped", "no capsule"])
def test_a_row_function_of_another_signature_is_refused(wrong):
    """It would write past the end of a row."""

    class Wrong(normlib.LayerNorm):
        def row_functions(self, *, training):
            if wrong == "dtype":
                other = normlib.LayerNorm(self.features, bias=False, dtype=np.float64)
                rows = other.row_functions(training=training)
                return rows._replace(parameters=(None, None))
            rows = super().row_functions(training=training)
            if wrong == "swapped":
                return rows._replace(forward=rows.backward, backward=rows.forward)
            return rows._replace(forward=1)

    rnn = normlib.RNN(3, 4, norm=Wrong)
    x = np.ones((2, 2, 3), np.float32)
    error = ValueError if wrong == "no capsule" else TypeError
    message = "PyCapsule" if wrong == "no capsule" else "must be named 'void .*const float"
    for run in (rnn, rnn.forward):
        with pytest.raises(error, match=message):
            run(x)


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
    ("cell", "plain", "normalized"), [("lstm", 5, 15), ("gru", 5, 11), ("tanh", 1, 4)]
)
def test_what_a_cache_holds(cell, plain, normalized):
    """In multiples of H for each row, beside the input, the weights and the initial state."""
    x = np.zeros((6, 8, 5), np.float32)
    for norm, expected in ((None, plain), ("layer", normalized)):
        rnn = normlib.RNN(5, 16, norm=norm, **CELLS[cell])
        _, _, cache = rnn.forward(x)
        saved = {id(a): a.nbytes for a in cache.directions[0].saved.values() if a is not None}
        assert sum(saved.values()) == expected * 6 * 8 * 16 * 4


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


# ---- interruption --------------------------------------------------------------------------------

INTERRUPTED = """
import sys, time
import numpy as np
import normlib
n_steps, n_batch, input_size, hidden_size = map(int, sys.argv[2:])
rnn = normlib.RNN(input_size, hidden_size, rng=0)
before = rnn.state_dict()
x = np.zeros((n_steps, n_batch, input_size), np.float32)
run = rnn if sys.argv[1] == "infer" else rnn.forward
normlib.set_num_threads(1)
rnn(x[:2])
print("ready", flush=True)
try:
    run(x)
except KeyboardInterrupt:
    end = time.monotonic()
    assert all((before[name] == array).all() for name, array in rnn.state_dict().items())
    y, _ = rnn(x[:2])
    assert np.isfinite(y).all()
    print(end, flush=True)
else:
    print("not interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("method", "sizes"),
    [("infer", (1 << 23, 1, 1, 1)), ("train", (1 << 14, 1, 8, 1024))],
    ids=["tiny steps", "one wide row"],
)
def test_ctrl_c(method, sizes):
    """A long sequence ends soon after the signal, whatever its shape; the network is unharmed."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, method, *map(str, sizes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert float(out) - sent < 1
