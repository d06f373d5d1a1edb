"""Which loop over time runs, and that each refuses what does not fit it."""

import ctypes
import gc

import numpy as np
import pytest
from scipy import LowLevelCallable

import normlib
from fused_networks import assert_close, assert_same_bits, draw, forward, gradients, make
from networks import CELLS, every_cell
from normlib.errors import PluginError, SignatureError
from python_rows import PythonRows


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
    path = normlib.RNN(3, 4, norm=OwnBackward).path
    assert path.reason == "OwnBackward at norm_ih_l0 has no compiled row functions"


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


def test_a_gain_of_another_dtype_gives_the_same_bits_at_inference():
    rng = np.random.default_rng(0)
    x = draw(rng, np.float32, 3, 2, 5)
    gain = rng.standard_normal(7)
    results = []
    for may_fuse in (True, False):
        rnn = normlib.RNN(5, 7, cell="rnn", norm="batch", rng=0)
        rnn._directions[0].may_fuse = may_fuse
        rnn.normalizers["norm_a_l0"].parameters["gain"] = gain
        results.append(rnn(x)[0])
        assert rnn.path.inference == ("fused" if may_fuse else "stepwise")
    assert_same_bits(results[:1], results[1:])


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


@pytest.mark.parametrize(
    "case",
    {
        "dtype": (SignatureError, r"whose argument 1 is double \* instead of float \*"),
        "swapped": (SignatureError, "which has 8 arguments instead of 6"),
        "list": (SignatureError, "got list"),
        "capsule": (SignatureError, "got PyCapsule"),
        "user data": (SignatureError, "user_data, which is not passed on"),
        "too many": (PluginError, "at most 4 parameters, and as many names; got 5 and 5"),
        "names": (PluginError, "at most 4 parameters, and as many names; got 2 and 1"),
        "cache": (
            PluginError,
            "of Wrong at norm_ih_l0 must have a cache_size of at least 0, .* got -8",
        ),
        "tuple": (PluginError, "row functions of Wrong at norm_ih_l0 must be a RowFunctions"),
    }.items(),
    ids=lambda item: item[0],
)
def test_row_functions_that_would_go_astray_are_refused(case):
    """They would write past the end of a row."""
    wrong, (error, message) = case

    class Wrong(normlib.LayerNorm):
        def row_functions(self, *, training):
            rows = super().row_functions(training=training)
            match wrong:
                case "dtype":
                    other = normlib.LayerNorm(self.features, bias=False, dtype=np.float64)
                    return other.row_functions(training=training)
                case "swapped":
                    return rows._replace(forward=rows.backward, backward=rows.forward)
                case "list":
                    return rows._replace(forward=[])
                case "capsule":
                    return rows._replace(forward=tuple.__getitem__(rows.forward, 0))
                case "user data":
                    function = LowLevelCallable(rows.forward.function, ctypes.c_void_p(1))
                    return rows._replace(forward=function)
                case "too many":
                    return rows._replace(parameters=(None,) * 5, names=(None,) * 5)
                case "names":
                    return rows._replace(names=("gain",))
                case "cache":
                    return rows._replace(cache_size=-8)
            return tuple(rows)

    rnn = normlib.RNN(3, 4, norm=Wrong)
    x = np.ones((2, 2, 3), np.float32)
    for run in (rnn, rnn.forward, lambda x: rnn.step(x[0]), lambda x: rnn.path):
        with pytest.raises(error, match=message):
            run(x)


def test_row_functions_live_as_long_as_they_are_used():
    """Made anew at each call, and kept by nobody else."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        rnn = normlib.RNN(3, 4, norm=PythonRows, rng=0, dtype=dtype)
        plain = normlib.RNN(3, 4, norm="rms", rng=0, dtype=dtype)
        assert rnn.path == ("fused", "fused", "")
        x = draw(rng, dtype, 5, 2, 3)
        results = []
        for one in (rnn, plain):
            y, state, cache = one.forward(x)
            for x_t in x:
                y_t, state = one.step(x_t, state)
                gc.collect()
            results.append([one(x)[0], y, y_t, *gradients(one, np.ones_like(y), cache)])
        assert_close(results[0], results[1], 64)


@every_cell
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_cache_has_room_in_inference_too(cell, n_threads, columns, share):
    """A row of it for each thread, whatever its size beside the cell's own scratch."""

    class LargeCache(PythonRows):
        cache_size = 1000

        def row_forward(self, x, y, gain, eps, cache, size):
            assert cache.ctypes.data % 8 == 0
            cache[...] = np.arange(1000)
            super().row_forward(x, y, gain, eps, cache, size)
            assert np.all(cache[1:] == np.arange(1, 1000))

    rng = np.random.default_rng(0)
    x = draw(rng, np.float32, 3, 13, 5)
    results = []
    for norm in (LargeCache, "rms"):
        rnn = normlib.RNN(5, 3, **CELLS[cell], norm=norm, rng=0)
        share(n_threads, columns)
        y, state = rnn(x)
        y_t, _ = rnn.step(x[0], state)
        results.append([y, y_t])
    assert_close(results[0], results[1], 64)


def test_each_parameter_has_its_own_last_step():
    class TwoLengths(PythonRows):
        """A gain for each of two steps, and a setting for each of four."""

        def row_functions(self, *, training):
            rows = super().row_functions(training=training)
            gains = np.repeat([1, 2], self.features).reshape(2, -1).astype(self.dtype)
            settings = np.ones((4, self.features), self.dtype)
            return rows._replace(parameters=(gains, settings), names=(None, None))

    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    changing = normlib.RNN(3, 4, norm=TwoLengths, rng=0, norm_config={"gain": False})
    doubled = normlib.RNN(3, 4, norm="rms", rng=0)
    _, state = doubled(x[:1])
    for name, array in doubled.parameters.items():
        if name.endswith("gain"):
            array[...] = 2
    expected, _ = doubled(x[1:], state)
    assert_close([changing(x)[0][1:]], [expected], 64)
