"""Row functions that are Python inside, so that a test can make any, right or wrong."""

import ctypes

import numpy as np
from scipy import LowLevelCallable

import normlib

T_NUMBERS = {np.dtype(np.float32): ctypes.c_float, np.dtype(np.float64): ctypes.c_double}


def numbers(pointer, size):
    return np.ctypeslib.as_array(pointer, (size,)) if pointer else None


class PythonRows(normlib.RMSNorm):
    """RMS norm whose row functions call ``row_forward`` and ``row_backward`` with arrays.

    They have one element more than they should, for tests of what goes past the end: ``size`` is F.
    """

    cache_size = 1

    def row_forward(self, x, y, gain, eps, cache, size):
        rstd = 1 / np.sqrt(np.mean(np.square(x[:size], dtype=np.float64)) + eps)
        cache[0] = rstd
        y[:size] = x[:size] * rstd * (1 if gain is None else gain[:size])

    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        rstd = cache[0]
        dxhat = dy[:size] * (1 if gain is None else gain[:size])
        xhat = x[:size] * rstd
        dx[:size] = rstd * (dxhat - xhat * np.mean(dxhat * xhat))
        if dgain is not None:
            dgain[:size] += dy[:size] * xhat

    def row_functions(self, *, training):
        """Functions made anew at each call, and kept by the `LowLevelCallable` alone."""
        return normlib.RowFunctions(
            forward_of(self),
            backward_of(self),
            (self.parameters.get("gain"),),
            ("gain",),
            self.cache_size,
        )


def forward_of(norm):
    row = ctypes.POINTER(T_NUMBERS[norm.dtype])
    doubles = ctypes.POINTER(ctypes.c_double)

    @ctypes.CFUNCTYPE(
        None, row, row, ctypes.c_ssize_t, ctypes.POINTER(row), ctypes.c_double, doubles
    )
    def call(x, y, size, parameters, eps, cache):
        x, y, gain = (numbers(pointer, size + 1) for pointer in (x, y, parameters[0]))
        norm.row_forward(x, y, gain, eps, numbers(cache, norm.cache_size), size)

    return LowLevelCallable(call)


def backward_of(norm):
    row = ctypes.POINTER(T_NUMBERS[norm.dtype])
    doubles = ctypes.POINTER(ctypes.c_double)

    @ctypes.CFUNCTYPE(
        None, row, row, row, ctypes.c_ssize_t, ctypes.POINTER(row), ctypes.c_double, doubles,
        ctypes.POINTER(doubles),
    )  # fmt: skip
    def call(dy, x, dx, size, parameters, eps, cache, gradients):
        dy, x, dx, gain = (numbers(pointer, size + 1) for pointer in (dy, x, dx, parameters[0]))
        dgain = numbers(gradients[0], size + 1)
        cache = numbers(cache, norm.cache_size)
        norm.row_backward(dy, x, dx, gain, eps, cache, dgain, size)

    return LowLevelCallable(call)
