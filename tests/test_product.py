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
