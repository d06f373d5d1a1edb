"""The packed product: right, and each row's bits its own."""

import numpy as np
import pytest

from normlib import _kernels

SHAPES = [(1, 1, 1), (3, 7, 33), (8, 256, 96), (13, 100, 50), (33, 33, 7), (70, 5, 200), (4, 0, 3)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_numpy(cpu_level, dtype, rng):
    for M, K, N in SHAPES:
        a = rng.standard_normal((M, K)).astype(dtype)
        weight = rng.standard_normal((N, 2 * K)).astype(dtype)[:, ::2]
        out = np.full((M, N), np.nan, dtype)
        _kernels.product.product(a, _kernels.product.pack(weight.T), out, 1)
        expected = a.astype(np.longdouble) @ weight.T.astype(np.longdouble)
        bound = np.finfo(dtype).eps * (np.abs(a) @ np.abs(weight.T)) * (1 + K / 8)
        assert (np.abs(out - expected) <= bound).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["rows", "columns", "both strided"])
def test_packing(cpu_level, dtype, layout, rng):
    """Whole squares, their edges, and padding of zeros."""
    for K, N in ((1, 1), (16, 48), (17, 50), (33, 100), (64, 47), (5, 200), (0, 3)):
        b = rng.standard_normal((K, N)).astype(dtype)
        b[:1, :1] = np.nan
        if layout == "columns":
            b = np.asfortranarray(b)
        elif layout == "both strided":
            b = np.repeat(np.repeat(b, 2, axis=0), 3, axis=1)[::2, ::3]
        packed = _kernels.product.pack(b)
        assert packed.panels.ctypes.data % 64 == 0
        width = _kernels.product.pack(np.zeros((1, 1), dtype)).panels.size
        n_panels = -(-N // width)
        padded = np.zeros((K, n_panels * width), dtype)
        padded[:, :N] = b
        expected = padded.reshape(K, n_panels, width).transpose(1, 0, 2)
        np.testing.assert_array_equal(packed.panels, expected.reshape(-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_has_the_same_bits_anywhere(dtype, rng):
    """In every batch, at every place in it, with any thread count, and at v3 as at v4."""
    levels = [level for level in _kernels.available_levels() if level != "baseline"]
    for _, K, N in SHAPES:
        a = rng.standard_normal((33, K)).astype(dtype)
        weight = rng.standard_normal((N, K)).astype(dtype)
        expected = None
        for level in levels:
            kernel = _kernels.load("product", level)
            packed = kernel.pack(weight.T)
            for n_threads in (1, 2, 3):
                for n in (1, 2, 5, 8, 33):
                    for first in (0, 33 - n):
                        out = np.empty((n, N), dtype)
                        rows = np.ascontiguousarray(a[first : first + n])
                        kernel.product(rows, packed, out, n_threads)
                        if expected is None:
                            expected = np.empty((33, N), dtype)
                            kernel.product(a, packed, expected, 1)
                        np.testing.assert_array_equal(out, expected[first : first + n])


GRADIENTS = [(1, 1, 1), (7, 3, 33), (100, 13, 50), (511, 48, 49), (513, 49, 96), (1100, 97, 5)]
GRADIENTS += [(0, 3, 4), (5, 1, 200), (1024, 6, 97)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", _kernels.available_levels())
def test_add_gradient(level, dtype, rng):
    """Of column parts of wider arrays; what is outside them and of out's rows stays."""
    kernel = _kernels.load("product", level)
    for K, M, N in GRADIENTS:
        wide_a, wide_b = np.full((2, K, M + N + 3), np.nan, dtype)
        a, b = wide_a[:, 2 : 2 + M], wide_b[:, 1 : 1 + N]
        a[...], b[...] = rng.standard_normal((K, M)), rng.standard_normal((K, N))
        start = rng.standard_normal((M, N)).astype(dtype)
        expected = start + a.T.astype(np.longdouble) @ b.astype(np.longdouble)
        bound = np.abs(start) + np.abs(a.T) @ np.abs(b)
        bound = np.finfo(dtype).eps * bound * (1 + min(K, 512) / 8)
        first = None
        for n_threads in (1, 2, 3, 4):
            memory = np.full((M + 2, N), 7, dtype)
            out = memory[1:-1]
            out[...] = start
            kernel.add_gradient(a, b, out, n_threads)
            assert (np.abs(out - expected) <= bound).all(), (K, M, N)
            assert (memory[[0, -1]] == 7).all()
            first = out if first is None else first
            np.testing.assert_array_equal(out, first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_gradient_has_the_same_bits_at_every_level(dtype, rng):
    levels = [level for level in _kernels.available_levels() if level != "baseline"]
    for K, M, N in GRADIENTS:
        a, b = rng.standard_normal((K, M)).astype(dtype), rng.standard_normal((K, N)).astype(dtype)
        outs = []
        for level in levels:
            outs.append(np.ones((M, N), dtype))
            _kernels.load("product", level).add_gradient(a, b, outs[-1], 2)
        for out in outs:
            np.testing.assert_array_equal(out, outs[0])


def test_what_is_not_finite_stays_in_its_column_of_a_gradient(rng):
    a, b = rng.standard_normal((600, 50)), rng.standard_normal((600, 40))
    a[3, 7], b[590, 9] = np.nan, np.inf
    out = np.zeros((50, 40))
    _kernels.product.add_gradient(a, b, out, 1)
    finite = np.isfinite(out)
    assert not finite[7].any()
    assert not finite[:, 9].any()
    finite[7] = finite[:, 9] = True
    assert finite.all()
