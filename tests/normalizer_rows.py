"""Rows, and normalizers away from their start, that the tests of the normalizers share."""

import numpy as np


def rows(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(dtype)


def set_randomly(norm, seed=9):
    rng = np.random.default_rng(seed)
    for array in norm.parameters.values():
        array[...] = rng.normal(size=array.shape)
    return norm


def expected(norm, x, mean, var):
    y = (x.astype(np.float64) - mean) / np.sqrt(var + norm.eps)
    return y * norm.parameters.get("gain", 1.0) + norm.parameters.get("bias", 0.0)


def tolerance(dtype):
    return {"rtol": 16 * np.finfo(dtype).eps, "atol": 16 * np.finfo(dtype).eps}
