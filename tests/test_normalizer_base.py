"""The base class, for those who derive from it."""

import numpy as np
import pytest

from normalizer_rows import rows, set_randomly
from normlib import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, Normalizer, RMSNorm
from normlib.errors import DTypeError, PluginError, ShapeError

FAMILY = [LayerNorm, BatchNorm, RMSNorm, GroupNorm, InstanceNorm]


class Scale(Normalizer):
    per_sample = True

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        return self.affine(x), x

    def backward(self, dy, cache):
        return self.affine_backward(dy, cache)


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Normalizer(3)


def test_inference_is_forward_unless_defined():
    norm = set_randomly(Scale(3, dtype="float64"))
    x = rows(4, 3)
    np.testing.assert_array_equal(norm(x), norm.forward(x)[0])
    out = np.empty_like(x)
    assert norm(x, out=out) is out
    np.testing.assert_array_equal(out, norm(x))
    with pytest.raises(ShapeError, match=r"out must have x's shape, \(4, 3\); got \(2, 3\)"):
        norm(x, out=np.empty((2, 3)))
    with pytest.raises(DTypeError, match="out must have x's dtype, float64; got float32"):
        norm(x, out=np.empty((4, 3), "float32"))
    with pytest.raises(DTypeError, match="out must be a NumPy array; got list"):
        norm(x, out=[0.0])


def test_inference_by_batch_must_be_defined():
    norm = type("ByBatch", (Scale,), {"per_sample": False})(3)
    with pytest.raises(NotImplementedError, match="ByBatch has per_sample = False and must define"):
        norm(rows(4, 3))


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (np.zeros((2, 3)), r"ndarray of shape \(2, 3\)"),
        ((), "tuple of 0"),
        ([1, 2], "list of 2"),
        (None, "NoneType"),
    ],
)
def test_inference_needs_a_pair_of_forward(result, got):
    class Broken(Scale):
        def forward(self, x, *, step=0, mask=None):
            return result

    message = (
        rf"forward of Broken must return a tuple of two, \(y, cache\); got {got}\. End it with"
    )
    with pytest.raises(PluginError, match=message):
        Broken(3)(rows(2, 3))


@pytest.mark.parametrize("cls", [*FAMILY, Scale])
@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (np.ones((1, 8), np.float32), ShapeError, r".*\(1, 8\)"),
        (np.ones(4, np.float32), ShapeError, r".*\(4,\)"),
        (np.ones((), np.float32), ShapeError, r".*\(\)"),
        (np.ones(8, int), DTypeError, "int64"),
        (np.ma.ones(8), DTypeError, "(a )?masked"),
    ],
)
def test_a_wrong_gain_is_refused_on_every_path(cls, value, error, got):
    norm = cls(8)
    x = rows(4, 8, dtype="float32")
    _, cache = norm.forward(x)
    before = {key: array.copy() for key, array in norm.buffers.items()}
    norm.parameters["gain"] = value
    message = f"gain.* must .*; got {got}"
    out = np.full_like(x, 7)
    for call in (
        lambda: norm(x, out=out),
        lambda: norm.forward(x),
        lambda: norm.forward_frozen(x),
        lambda: norm.backward(x, cache),
        *([] if cls is Scale else [lambda: norm.row_functions(training=False)]),
    ):
        with pytest.raises(error, match=message):
            call()
    assert np.all(out == 7)
    for key, array in before.items():
        np.testing.assert_array_equal(norm.buffers[key], array)


@pytest.mark.parametrize("parameters", [{}, {"gain": False}, {"gain": False, "bias": False}])
def test_affine_never_returns_its_argument(parameters):
    norm = Scale(3, dtype="float64", **parameters)
    x = rows(4, 3)
    y, cache = norm.forward(x)
    dx, _ = norm.backward(x, cache)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(dx, x)


def test_sums_over_rows_run_in_float64():
    norm = Scale(1, dtype="float32")
    x = np.full((100_000, 1), 0.1, np.float32)
    _, cache = norm.forward(x)
    _, grads = norm.backward(x, cache)
    np.testing.assert_allclose(grads["bias"], 100_000 * np.float64(x[0]), rtol=1e-7)
