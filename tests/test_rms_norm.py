"""rms_norm, forward and backward, against the oracle."""

import numpy as np
import pytest

import normlib
from gradcheck import assert_gradient
from reference import INPUTS, rms_norm, rms_norm_backward, ulps

SHAPES = [(1, 1), (3, 2), (5, 7), (4, 16), (9, 33), (17, 64), (6, 100), (13, 768), (2, 20000)]
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_forward_within_four_ulp(cpu_level, n_threads, dtype, kind, rng):
    for shape in SHAPES:
        x = INPUTS[kind](rng, shape).astype(dtype)
        gain = rng.uniform(0.5, 1.5, shape[1]).astype(dtype)
        for g in (None, gain):
            y, rstd = normlib.rms_norm_forward(x, g)
            expected, expected_rstd = rms_norm(x, g)
            assert ulps(y, expected, dtype) <= 4, shape
            assert rstd.dtype == np.float64
            np.testing.assert_allclose(rstd, expected_rstd[:, 0].astype(float), rtol=1e-13)
            np.testing.assert_array_equal(normlib.rms_norm(x, g), y)


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (np.float32, [1e-43, 1e-40, 1e-20, 1e18, 1e20, 3e38]),
        (np.float64, [1e-305, 1e-300, 1e200, 1e307]),
    ],
)
@pytest.mark.parametrize("n", [77, 300])
def test_extreme_rows_without_eps(cpu_level, dtype, scales, n, rng):
    """Squares overflow and underflow, and reciprocals too; the result keeps its digits."""
    for scale in scales:
        x = (scale * rng.uniform(-1, 1, (3, n))).astype(dtype)
        gain = rng.uniform(0.5, 1.5, n).astype(dtype)
        y, rstd = normlib.rms_norm_forward(x, gain, eps=0)
        assert ulps(y, rms_norm(x, gain, eps=0)[0], dtype) <= 4
        dy = rng.standard_normal(x.shape).astype(dtype)
        dx, dgain = normlib.rms_norm_backward(dy, x, rstd, gain)
        expected_dx, summands = rms_norm_backward(dy, x, gain, eps=0)
        with np.errstate(over="ignore"):
            expected_dx = expected_dx.astype(dtype)
        finite = np.isfinite(expected_dx)
        largest = np.abs(expected_dx[finite]).max(initial=0)
        np.testing.assert_allclose(dx[finite], expected_dx[finite], rtol=1e-4, atol=1e-5 * largest)
        np.testing.assert_allclose(dgain, summands.sum(0).astype(float), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros(cpu_level, dtype):
    for n in (1, 70, 300):
        x = np.zeros((3, n), dtype)
        np.testing.assert_array_equal(normlib.rms_norm(x), x)
        assert np.isnan(normlib.rms_norm(x, eps=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [70, 300])
def test_nan_and_inf_stay_in_their_row(cpu_level, n_threads, dtype, n, rng):
    x = rng.standard_normal((40, n)).astype(dtype)
    clean = normlib.rms_norm(x)
    x[3, 5] = np.nan
    x[20, 0] = np.inf
    x[39, 69] = -np.inf
    y, rstd = normlib.rms_norm_forward(x)
    assert np.isnan(y[3]).all()
    for row, column in [(20, 0), (39, 69)]:
        assert np.isnan(y[row, column])
        assert (np.delete(y[row], column) == 0).all()
    good = np.setdiff1d(np.arange(40), [3, 20, 39])
    np.testing.assert_array_equal(y[good], clean[good])
    dx, _ = normlib.rms_norm_backward(np.ones_like(x), x, rstd)
    assert np.isfinite(dx[good]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "shifted integers", "huge", "outlier first"])
def test_backward_against_oracle(cpu_level, n_threads, dtype, kind, rng):
    for shape in [*SHAPES, (200, 70)]:
        x = INPUTS[kind](rng, shape).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        gain = rng.uniform(0.5, 1.5, shape[1]).astype(dtype)
        eps = np.finfo(dtype).eps
        for g in (gain, None):
            _, rstd = normlib.rms_norm_forward(x, g)
            dx, dgain = normlib.rms_norm_backward(dy, x, rstd, g)
            expected_dx, gain_terms = rms_norm_backward(dy, x, g)
            xhat = np.abs(rms_norm(x)[0])
            size = rstd[:, None] * (np.abs(dy).max() + xhat * (np.abs(dy) * xhat).mean()) * 1.5
            assert (np.abs(dx - expected_dx) <= 8 * eps * size).all(), shape
            if g is None:
                assert dgain is None
            else:
                bound = 8 * eps * np.maximum(1, np.abs(gain_terms)).sum(0)
                assert (np.abs(dgain - gain_terms.sum(0)) <= bound).all()


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (1, 2)])
def test_backward_against_differences(cpu_level, axis, rng):
    x = rng.standard_normal((3, 4, 5))
    axes = (axis,) if isinstance(axis, int) else axis
    gain = rng.standard_normal(tuple(x.shape[a] for a in sorted(a % 3 for a in axes)))
    dy = rng.standard_normal(x.shape)

    def loss():
        return float((dy * normlib.rms_norm(x, gain, axis=axis)).sum())

    _, rstd = normlib.rms_norm_forward(x, gain, axis=axis)
    dx, dgain = normlib.rms_norm_backward(dy, x, rstd, gain, axis=axis)
    assert_gradient(dx, loss, x)
    assert_gradient(dgain, loss, gain)


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 1), (2, 0), (0, 1, 2)])
def test_axes(axis, rng):
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    axes = tuple(sorted(a % 3 for a in ((axis,) if isinstance(axis, int) else axis)))
    gain = rng.standard_normal(tuple(x.shape[a] for a in axes)).astype(np.float32)
    y, rstd = normlib.rms_norm_forward(x, gain, axis=axis)
    broadcast = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    expected, expected_rstd = rms_norm(x, gain.reshape(broadcast), axes)
    np.testing.assert_allclose(y, expected.astype(float), rtol=1e-6, atol=1e-6)
    assert y.flags.c_contiguous
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    np.testing.assert_allclose(rstd, expected_rstd.reshape(kept).astype(float), rtol=1e-13)


def test_the_normalizer_has_no_bias(rng):
    norm = normlib.create("rms", 8, bias=True)
    assert list(norm.parameters) == ["gain"]
    assert not norm.get_config()["bias"]
    rnn = normlib.RNN(3, 4, cell="lstm", norm="rms", rng=0)
    assert {name for name in rnn.parameters if name.startswith("norm_")} == {
        "norm_ih_l0.gain",
        "norm_hh_l0.gain",
        "norm_c_l0.gain",
    }
