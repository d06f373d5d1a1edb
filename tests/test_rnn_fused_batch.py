"""Training with batch norm in the fused loop: the bits of the loop step by step, and its state."""

import ctypes
import itertools
import mmap
import sys

import numpy as np
import pytest

import normlib
from fused_networks import assert_close, assert_same_bits, draw, draw_state, use_level
from networks import CELLS, as_list, every_cell, every_dtype
from normlib import _kernels
from normlib.rnn import fused, fused_batch, fused_training

THREADS = (1, 2, 3)


def make(cell, *, sizes=(5, 7), may_fuse=True, norm="batch", rnn=None, **config):
    """An RNN none of whose parameters and statistics is at its starting value."""
    options = {"norm": norm, "norm_config": config if norm == "batch" else None, **(rnn or {})}
    made = normlib.RNN(*sizes, rng=0, **CELLS[cell], **options)
    rng = np.random.default_rng(1)
    for array in made.parameters.values():
        array += rng.normal(0, 0.3, array.shape).astype(array.dtype)
    for normalizer in made.normalizers.values():
        for key in normalizer.buffers.keys() & {"running_mean", "running_var"}:
            normalizer.buffers[key] += rng.uniform(0, 1, normalizer.buffers[key].shape)
    for one in made._directions:
        one.may_fuse = may_fuse
    assert made.path.training == ("fused" if may_fuse else "stepwise"), made.path
    return made


def train(rnn, x, state, lengths, dy, dstate):
    """All arrays that a pass makes, the state of the network among them."""
    y, final, cache = rnn.forward(x, state, lengths)
    dx, d_initial, grads = rnn.backward(dy, cache, dstate)
    assert list(grads) == list(rnn.parameters)
    again = rnn.backward(dy, cache, dstate)[0]
    assert_same_bits([again], [dx])
    results = [y, *as_list(final), *rnn.state_dict().values()]
    return [array.copy() for array in [*results, dx, *as_list(d_initial), *grads.values()]]


def passes(rnn, rng, n_steps, n_batch, lengths=None, n_black=0):
    """The arrays of two passes, of which the second starts from other running statistics."""
    x = draw(rng, rnn.dtype, n_steps, n_batch, rnn.input_size)
    x[:n_black] = 0
    state = None if n_black else draw_state(rnn, rng, n_batch)
    dy = draw(rng, rnn.dtype, n_steps, n_batch, rnn.output_size)
    dstate = draw_state(rnn, rng, n_batch)
    return [array for _ in range(2) for array in train(rnn, x, state, lengths, dy, dstate)]


# ---- the loop step by step -----------------------------------------------------------------------

CASES = {
    "plain": ({}, (5, 4), {}),
    "one step": ({"sizes": (3, 33)}, (1, 2), {}),
    "one row left": ({"steps": 3, "momentum": None}, (6, 3), {"lengths": [6, 2, 3]}),
    "lengths": ({"sizes": (3, 100), "steps": 9}, (9, 9), {"lengths": [9, 1, 2, 3, 4, 5, 0, 9, 1]}),
    "layers": (
        {"rnn": {"num_layers": 2, "bidirectional": True}, "momentum": 1.0},
        (4, 5),
        {"lengths": [3, 4, 0, 1, 2]},
    ),
    "blocks": ({"sizes": (40, 20), "steps": 6, "momentum": 0.0}, (3, 210), {}),
    "no eps": ({"gain": False, "eps": 0.0}, (5, 5), {}),
    "black": ({"sizes": (2, 20), "steps": 8}, (8, 5), {"n_black": 4}),
}


@every_cell
@every_dtype
@pytest.mark.parametrize("case", CASES)
def test_bits_of_the_loop_step_by_step(cell, dtype, case, share):
    config, shape, options = CASES[case]
    config = {**config, "rnn": {**config.get("rnn", {}), "dtype": dtype}}
    expected = passes(
        make(cell, may_fuse=False, **config), np.random.default_rng(2), *shape, **options
    )
    for n_threads in THREADS:
        share(n_threads, False)
        actual = passes(make(cell, **config), np.random.default_rng(2), *shape, **options)
        assert_same_bits(actual, expected)


@every_cell
@pytest.mark.parametrize("first", [0, 1])
def test_bits_beside_the_identity(cell, first, share):
    """Batch norm at every second site."""
    share(2, False)
    results = []
    for may_fuse in (True, False):
        made = itertools.count(first)

        def create(features, *, bias, dtype, made=made):
            norm = normlib.NoOp if next(made) % 2 else normlib.BatchNorm
            return norm(features, bias=bias, dtype=dtype)

        if cell in ("tanh", "relu") and first:
            return  # the identity alone
        rnn = make(cell, norm=create, may_fuse=may_fuse)
        results.append(passes(rnn, np.random.default_rng(2), 4, 3))
    assert_same_bits(*results)


@every_cell
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
def test_bits_where_values_are_not_finite(cell, value, share):
    share(2, False)
    results = []
    for may_fuse in (True, False):
        rnn, rng = make(cell, may_fuse=may_fuse), np.random.default_rng(2)
        x, dy = draw(rng, np.float32, 4, 9, 5), draw(rng, np.float32, 4, 9, 7)
        x[1, 4], dy[2, 3] = value, value
        with np.errstate(all="raise"):
            results.append(train(rnn, x, None, None, dy, None))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@every_cell
@pytest.mark.parametrize("value", [1e160, 1e-170])
def test_bits_where_statistics_of_doubles_overflow(cell, value):
    """They take the loop step by step after all."""
    results = []
    for may_fuse in (True, False):
        rnn = make(cell, eps=0.0, may_fuse=may_fuse, rnn={"dtype": np.float64})
        rng = np.random.default_rng(2)
        x = draw(rng, np.float64, 4, 3, 5)
        x[2] *= value
        for name, array in rnn.parameters.items():
            if name.startswith("weight_hh"):
                array[...] = 0
        results.append(train(rnn, x, None, None, draw(rng, np.float64, 4, 3, 7), None))
    assert_same_bits(*results)


@every_cell
def test_bits_where_differences_of_doubles_overflow(cell):
    """Their statistics are scaled step by step; those of the fused loop are Inf, and not taken."""
    results = []
    for may_fuse in (True, False):
        rnn = make(cell, sizes=(1, 7), may_fuse=may_fuse, rnn={"dtype": np.float64})
        rng = np.random.default_rng(2)
        for name, array in rnn.parameters.items():
            if name.startswith("weight"):
                array[...] = name.startswith("weight_ih")
        x = np.array([[1, 1, 1], [-1, 1, 1], [-1, 1, 1], [1, 1, 1]])[..., np.newaxis] * 1.6e308
        results.append(train(rnn, x, None, None, draw(rng, np.float64, 4, 3, 7), None))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@every_cell
@every_dtype
def test_levels(cell, dtype, monkeypatch, share):
    expected = None
    for level in _kernels.available_levels():
        with monkeypatch.context() as patch:
            use_level(patch, level)
            assert fused_batch.kernels.__name__.split(".")[-2] == level
            share(2, False)
            config = {"sizes": (33, 20), "steps": 2, "rnn": {"dtype": dtype}}
            actual = passes(make(cell, **config), np.random.default_rng(2), 4, 6)
            if level == "baseline":
                other = make(cell, may_fuse=False, **config)
                assert_same_bits(actual, passes(other, np.random.default_rng(2), 4, 6))
                continue
        expected = expected or actual
        assert_same_bits(actual, expected)


@every_cell
def test_parts(cell, share, monkeypatch):
    """A sequence in many calls: the same outputs, and gradients of weights summed otherwise."""
    share(2, False)
    config = {"steps": 3, "rnn": {"num_layers": 2}}
    lengths = [7, 3, 0, 5, 6, 1]
    expected = passes(make(cell, **config), np.random.default_rng(2), 7, 6, lengths)
    monkeypatch.setattr(fused_training, "BACKWARD_ROWS", 12)
    monkeypatch.setattr(fused, "CALL_PRODUCTS", 1)
    rnn = make(cell, **config)
    actual = passes(rnn, np.random.default_rng(2), 7, 6, lengths)
    exact = 1 + len(as_list(draw_state(rnn, np.random.default_rng(2), 6))) + len(rnn.state_dict())
    assert_same_bits(actual[:exact], expected[:exact])
    floats = [
        [array for array in arrays if array.dtype.kind == "f"] for arrays in (actual, expected)
    ]
    assert_close(*floats, 32)


@every_cell
def test_memory_that_was_used_before_is_not_read(cell, monkeypatch):
    """What is kept for backward is written first, also in memory full of NaN."""
    expected = passes(make(cell), np.random.default_rng(2), 5, 4, [5, 1, 0, 3])
    for name in ("allocate", "empty"):
        original = getattr(fused_training.FusedTraining, name)

        def full(self, *args, original=original):
            made = original(self, *args)
            for array in made.values() if isinstance(made, dict) else [made]:
                array[...] = np.nan
            return made

        monkeypatch.setattr(fused_training.FusedTraining, name, full)
    assert_same_bits(passes(make(cell), np.random.default_rng(2), 5, 4, [5, 1, 0, 3]), expected)


def test_threads_are_used(share):
    """That is, the fixture does what it says."""
    one = make("lstm")._directions[0]._fused_batch
    for n_threads in THREADS:
        share(n_threads, False)
        assert one._threads(2, 5) == n_threads


# ---- which loop runs -----------------------------------------------------------------------------


class Between(normlib.BatchNorm):
    """Overrides nothing."""


class OwnForward(normlib.BatchNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return y + 1, cache


class OwnRows(normlib.BatchNorm):
    min_rows = 3


class OwnStatistics(normlib.BatchNorm):
    @property
    def running_mean(self):
        return self.buffers["running_mean"] * 2


@pytest.mark.parametrize("norm", [OwnForward, OwnRows, OwnStatistics])
def test_an_override_in_python_is_called(norm):
    rnn = normlib.RNN(3, 4, norm=norm, rng=0)
    assert rnn.path.training == "stepwise"
    assert rnn.path.reason == f"{norm.__name__} at norm_ih_l0 has no compiled row functions"
    assert normlib.RNN(3, 4, norm=Between).path == ("fused", "fused", "")


@pytest.mark.parametrize("method", ["forward", "backward", "forward_frozen", "running_var"])
def test_an_override_of_an_instance_is_called(method):
    rnn = make("gru")
    vars(rnn.normalizers["norm_hn_l0"])[method] = None
    assert rnn.path.training == "stepwise"


def test_a_population_twin_weighs_batches_otherwise():
    norm = normlib.BatchNorm(3)
    assert norm.batch_rule() is not None
    assert norm.population_twin().batch_rule() is None


def test_statistics_may_be_any_arrays():
    results = []
    for may_fuse in (True, False):
        rnn = make("lstm", may_fuse=may_fuse, steps=2)
        for normalizer in rnn.normalizers.values():
            for key, array in normalizer.buffers.items():
                normalizer.buffers[key] = np.repeat(array, 2, axis=0)[::2]
        results.append(passes(rnn, np.random.default_rng(2), 4, 3, [4, 1, 3]))
    assert_same_bits(*results)


def test_a_negative_running_variance_is_refused_and_nothing_changes():
    for may_fuse in (True, False):
        rnn = make("lstm", may_fuse=may_fuse, steps=3)
        rnn.normalizers["norm_c_l0"].running_var[2] = -1
        before = rnn.state_dict()
        with pytest.raises(normlib.errors.ParameterError, match="at least 0"):
            rnn.forward(np.ones((3, 2, 5)), None, [3, 2])
        for name, array in rnn.state_dict().items():
            np.testing.assert_array_equal(array, before[name])


def test_an_interrupted_call_changes_nothing(monkeypatch):
    rnn = make("lstm")
    before = rnn.state_dict()
    monkeypatch.setattr(fused, "CALL_PRODUCTS", 1)
    original, calls = fused_batch.kernels.forward, []

    class Interrupting:
        window_rows = staticmethod(fused_batch.kernels.window_rows)
        FACTOR_ROWS = fused_batch.kernels.FACTOR_ROWS

        @staticmethod
        def forward(*args):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            original(*args)

    monkeypatch.setattr(fused_batch, "kernels", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        rnn.forward(np.random.default_rng(0).standard_normal((5, 3, 5)))
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ---- memory --------------------------------------------------------------------------------------


def guarded(shape, dtype=np.float64):
    """An array of NaN behind whose last element, and some pages before, nobody may touch memory."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = -(-n_bytes // page) * page
    memory = mmap.mmap(-1, whole + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in (start, start + page + whole):
        assert libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(page), 0) == 0
    array = np.frombuffer(memory, dtype, int(np.prod(shape)), page + whole - n_bytes)
    array[...] = np.nan
    return array.reshape(shape)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX memory protection")
@every_cell
@every_dtype
def test_nothing_beside_the_arrays_is_touched(cell, dtype, monkeypatch, share):
    share(2, False)

    def allocate(self, rows, sizes):
        return {name: self.empty(rows, size) for name, size in sizes.items()}

    def empty(self, rows, gates):
        return guarded((rows, gates * self.cell.hidden_size), self.dtype)

    def statistics(self, *shape):
        rest = guarded(shape) if self.dtype == np.float64 else None
        return fused_batch.Statistics(guarded(shape), rest, guarded(shape))

    monkeypatch.setattr(fused_training.FusedTraining, "allocate", allocate)
    monkeypatch.setattr(fused_training.FusedTraining, "empty", empty)
    monkeypatch.setattr(fused_batch.FusedBatch, "_statistics", statistics)
    for hidden_size, lengths in ((7, [4, 1, 3]), (33, None)):
        rnn = make(cell, sizes=(3, hidden_size), rnn={"dtype": dtype})
        for array in passes(rnn, np.random.default_rng(2), 4, 3, lengths):
            assert np.isfinite(array).all()
