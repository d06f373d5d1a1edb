"""The same bits for any thread count, any batch and any CPU level with fused multiply-add."""

import numpy as np
import pytest

import normlib
from normlib import _kernels, threads

LEVELS = [level for level in _kernels.available_levels() if level != "baseline"]
SHAPES = [(1, 8), (7, 33), (33, 64), (130, 100), (64, 768), (5, 10000)]


@pytest.fixture
def use(monkeypatch):
    """Choose a CPU level and a thread count, which holds for work of any size."""
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 1)

    def use(level, n_threads):
        for name in _kernels.KERNELS:
            monkeypatch.setattr(_kernels, name, _kernels.load(name, level))
        normlib.set_num_threads(n_threads)

    yield use
    normlib.set_num_threads(None)


def results(x, dy, gain):
    """The bytes of everything that kernels compute from an array."""
    arrays = []
    y, mean, rstd = normlib.layer_norm_forward(x, gain)
    arrays += [y, mean, rstd, *normlib.layer_norm_backward(dy, x, mean, rstd, gain)]
    y, rstd = normlib.rms_norm_forward(x, gain)
    arrays += [y, rstd, *normlib.rms_norm_backward(dy, x, rstd, gain)]
    for shape, axis in [((len(x), -1), 1), ((len(x), 1, -1), 1), ((len(x), -1, 1), -2)]:
        seen, dseen = x.reshape(shape), dy.reshape(shape)
        y, mean, rstd = normlib.group_norm_forward(seen, 1, channel_axis=axis)
        arrays += [y, mean, rstd]
        arrays += normlib.group_norm_backward(dseen, seen, 1, mean, rstd, channel_axis=axis)
    arrays += normlib.moments(x)
    if len(x) > 1:
        y, mean, var = normlib.batch_norm_forward(x, gain)
        arrays += [y, mean, var, *normlib.batch_norm_backward(dy, x, mean, var, gain)]
        arrays.append(normlib.batch_norm(x, mean, var, gain))
    seen, dseen = x.reshape(1, len(x), -1), dy.reshape(1, len(x), -1)
    y, mean, rstd = normlib.instance_norm_forward(seen)
    arrays += [y, mean, rstd, *normlib.instance_norm_backward(dseen, seen, mean, rstd)]
    planes = x.reshape(len(x), 1, -1)
    if planes.shape[2] > 1:
        y, mean, var = normlib.batch_norm_forward(planes, channel_axis=1)
        arrays += [y, mean, var]
        arrays += normlib.batch_norm_backward(
            dy.reshape(planes.shape), planes, mean, var, channel_axis=1
        )
    return [a.tobytes() for a in arrays if a is not None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_and_levels(use, dtype, rng):
    for shape in SHAPES:
        x = (3 + rng.standard_normal(shape)).astype(dtype)
        dy = rng.standard_normal(shape).astype(dtype)
        gain = rng.standard_normal(shape[1]).astype(dtype)
        for group in (["baseline"], LEVELS):
            expected = None
            for level in group:
                for n_threads in (1, 2, 3, 7):
                    use(level, n_threads)
                    actual = results(x, dy, gain)
                    expected = expected or actual
                    assert actual == expected, (shape, level, n_threads)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_is_the_same_in_any_batch(cpu_level, n_threads, dtype, rng):
    for features in (7, 16, 33, 64, 100, 191, 768, 5000):
        x = rng.standard_normal((33, features)).astype(dtype)
        whole, mean, rstd = normlib.layer_norm_forward(x)
        whole_rms, rms_rstd = normlib.rms_norm_forward(x)
        for n in (1, 2, 5, 8, 17):
            for first in (0, 3, 33 - n):
                rows = slice(first, first + n)
                y, mean_n, rstd_n = normlib.layer_norm_forward(x[rows])
                np.testing.assert_array_equal(y, whole[rows])
                np.testing.assert_array_equal(normlib.layer_norm(x[rows]), whole[rows])
                np.testing.assert_array_equal(mean_n, mean[rows])
                np.testing.assert_array_equal(rstd_n, rstd[rows])
                y, rstd_n = normlib.rms_norm_forward(x[rows])
                np.testing.assert_array_equal(y, whole_rms[rows])
                np.testing.assert_array_equal(rstd_n, rms_rstd[rows])


def test_results_do_not_depend_on_alignment(rng):
    buffer = np.empty(10 * 100 + 16, np.float32)
    x = rng.standard_normal((10, 100)).astype(np.float32)
    expected = normlib.layer_norm(x)
    expected_rms = normlib.rms_norm(x)
    for offset in range(16):
        view = buffer[offset : offset + 1000].reshape(10, 100)
        view[...] = x
        np.testing.assert_array_equal(normlib.layer_norm(view), expected)
        np.testing.assert_array_equal(normlib.rms_norm(view), expected_rms)
        np.testing.assert_array_equal(normlib.layer_norm(view, out=view), expected)


def test_outputs_that_leave_the_cache_have_the_same_bits(cpu_level, rng):
    """Large outputs are stored past the cache, if their rows start cache lines."""
    x = rng.standard_normal((2048, 1024)).astype(np.float32)
    dy = rng.standard_normal((2048, 1024)).astype(np.float32)
    gain = rng.standard_normal(1024).astype(np.float32)
    some = slice(700, 760)
    y, mean, rstd = normlib.layer_norm_forward(x, gain)
    np.testing.assert_array_equal(y[some], normlib.layer_norm(x[some], gain))
    dx, _, _ = normlib.layer_norm_backward(dy, x, mean, rstd, gain)
    few, _, _ = normlib.layer_norm_backward(dy[some], x[some], mean[some], rstd[some], gain)
    np.testing.assert_array_equal(dx[some], few)
    y, rstd = normlib.rms_norm_forward(x, gain)
    np.testing.assert_array_equal(y[some], normlib.rms_norm(x[some], gain))
    dx, _ = normlib.rms_norm_backward(dy, x, rstd, gain)
    few, _ = normlib.rms_norm_backward(dy[some], x[some], rstd[some], gain)
    np.testing.assert_array_equal(dx[some], few)

    shifted = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    y, mean, var = normlib.batch_norm_forward(x, gain)
    normlib.batch_norm_forward(x, gain, out=shifted)
    np.testing.assert_array_equal(y, shifted)
    normlib.batch_norm(x, mean, var, gain, out=shifted)
    np.testing.assert_array_equal(normlib.batch_norm(x, mean, var, gain), shifted)
    for planes in (x.reshape(32, 16, 4096), x.reshape(1, 2, -1)):
        gain = gain[: planes.shape[1]]
        mean, var = normlib.moments(planes, axis=(0, 2))
        normlib.batch_norm(
            planes, mean, var, gain, channel_axis=1, out=shifted.reshape(planes.shape)
        )
        y = normlib.batch_norm(planes, mean, var, gain, channel_axis=1)
        np.testing.assert_array_equal(y.ravel(), shifted.ravel())


@pytest.mark.parametrize(("shape", "channel_axis"), [((2048, 1024), 1), ((32, 16, 64, 64), 1)])
def test_large_gradients_of_batch_norm(cpu_level, shape, channel_axis, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    _, mean, var = normlib.batch_norm_forward(x, channel_axis=channel_axis)
    dx, _, _ = normlib.batch_norm_backward(dy, x, mean, var, channel_axis=channel_axis)
    axes = tuple(a for a in range(len(shape)) if a != channel_axis)
    xhat = x - x.mean(axes, keepdims=True, dtype=float)
    rstd = 1 / np.sqrt(np.mean(xhat**2, axes, keepdims=True) + 1e-5)
    xhat *= rstd
    expected = dy - dy.mean(axes, keepdims=True, dtype=float)
    expected = rstd * (expected - xhat * np.mean(dy * xhat, axes, keepdims=True))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-5)
