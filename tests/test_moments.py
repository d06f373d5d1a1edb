"""moments and the streaming accumulator, against the oracle."""

import numpy as np
import pytest

import normlib
import reference
from normlib.errors import DTypeError, ParameterError, ShapeError
from reference import INPUTS


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", INPUTS)
def test_against_oracle(cpu_level, n_threads, dtype, kind, rng):
    for shape in [(3, 1), (5, 7), (4, 63), (4, 64), (9, 300), (2, 50000)]:
        x = INPUTS[kind](rng, shape).astype(dtype)
        mean, var = normlib.moments(x)
        expected_mean, expected_var, _ = reference.moments(x, (1,))
        assert mean.dtype == var.dtype == np.float64
        np.testing.assert_allclose(var, expected_var[:, 0].astype(float), rtol=1e-11)
        # What the sums lose is relative to the spread, and to the shift by the first element.
        size = np.sqrt(expected_var[:, 0]) + np.abs(x - expected_mean).max(1)
        error = np.abs(mean - expected_mean[:, 0])
        eps = np.finfo(float).eps
        assert (error <= 8 * eps * size + eps * np.abs(expected_mean[:, 0])).all()


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 1), (2, 0), (0, 1, 2)])
def test_axes(axis, keepdims, rng):
    x = rng.standard_normal((3, 4, 5))
    mean, var = normlib.moments(x, axis, keepdims=keepdims)
    np.testing.assert_allclose(mean, x.mean(axis, keepdims=keepdims), rtol=1e-12)
    np.testing.assert_allclose(var, x.var(axis, keepdims=keepdims), rtol=1e-12)


def test_empty():
    mean, var = normlib.moments(np.empty((3, 0)))
    assert mean.shape == var.shape == (3,)
    assert np.isnan(mean).all()
    assert normlib.moments(np.empty((0, 3)))[0].shape == (0,)


def test_stream_equals_whole(rng):
    x = (1000 + rng.standard_normal((100, 6))).astype(np.float32)
    seen = normlib.Moments(6)
    assert np.isnan(seen.mean).all()
    for first, stop in [(0, 1), (1, 40), (40, 40), (40, 75)]:
        seen.update(x[first:stop])
    rest = normlib.Moments(6)
    rest.update(x[75:].reshape(5, 5, 6))
    rest.merge(normlib.Moments(6))
    seen.merge(rest)
    mean, var = normlib.moments(x, axis=0)
    assert seen.count == 100
    np.testing.assert_allclose(seen.mean, mean, rtol=1e-11)
    np.testing.assert_allclose(seen.var, var, rtol=1e-6)


def test_stream_refuses_other_features():
    seen = normlib.Moments(6)
    with pytest.raises(ShapeError, match=r"x must have shape \(\.\.\., 6\); got \(2, 5\)"):
        seen.update(np.ones((2, 5)))
    with pytest.raises(ShapeError, match="other must have 6 features; got 5"):
        seen.merge(normlib.Moments(5))
    assert seen.count == 0


@pytest.mark.parametrize("features", [-1, 2.5, True, "a", None, 2**70])
def test_features_must_be_a_size(features):
    with pytest.raises(ParameterError, match="features must be"):
        normlib.Moments(features)


def test_stream_of_no_features():
    seen = normlib.Moments(0)
    seen.update(np.zeros((5, 0)))
    seen.update(np.zeros((2, 3, 0)))
    assert seen.count == 11
    assert seen.mean.shape == seen.var.shape == (0,)


@pytest.mark.parametrize("other", [None, 3, np.zeros(6)])
def test_only_moments_can_be_merged(other):
    with pytest.raises(DTypeError, match="other must be Moments; got"):
        normlib.Moments(6).merge(other)


def test_ragged_lists_are_refused():
    with pytest.raises(DTypeError, match="x must be an array, or nested lists whose lengths agree"):
        normlib.Moments(2).update([[1.0, 2.0], [3.0]])


@pytest.mark.parametrize(
    "values", [(np.inf, 1.0), (np.inf, -np.inf), (1e300, -1e300), (np.nan, 1.0)]
)
def test_stream_of_nan_inf_and_overflow_is_silent(values):
    with np.errstate(all="raise"):
        seen = normlib.Moments(1)
        for value in values:
            seen.update(np.array([[value], [1.0]]))
    assert not np.isfinite(seen.var).any()
