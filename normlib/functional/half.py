"""Half types, float16 and bfloat16: stored as such, computed in float32, rounded once."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import HALF, SINGLE, Array, check_out, is_half
from normlib.threads import threads_for

__all__ = ["narrow", "rounded", "widen", "widened"]


def widen(x: Array) -> Array:
    """An array of a half type in float32, C-contiguous."""
    bits = np.ascontiguousarray(x).view(np.uint16)
    wide = np.empty(x.shape, SINGLE)
    _kernels.halves.widen(bits, wide, x.size, x.dtype != HALF, threads_for(x.size))
    return wide


def widened(x: ArrayLike) -> ArrayLike:
    """A plain array of a half type in float32, and anything else as it is."""
    if type(x) is np.ndarray and x.dtype.isnative and is_half(x.dtype):
        return widen(x)
    return x


def narrow(wide: Array, out: Array) -> None:
    """Round float32 to out, C-contiguous, of a half type."""
    wide = np.ascontiguousarray(wide)
    bits = out.view(np.uint16)
    _kernels.halves.narrow(wide, bits, wide.size, out.dtype != HALF, threads_for(wide.size))


def _rounded(wide: Array, dtype: np.dtype[Any]) -> Array:
    out = np.empty(wide.shape, dtype)
    narrow(wide, out)
    return out


def rounded(x: Array, results: Any, out: Array | None = None) -> Any:
    """Results for `widen(x)`: what is float32 in x's type, the first array in out if given."""
    check_out(out, x)
    if not isinstance(results, tuple):
        return rounded(x, (results,), out)[0]
    halves = [
        _rounded(one, x.dtype) if one is not None and one.dtype == SINGLE else one
        for one in results
    ]
    if out is not None:
        out[...] = halves[0]
        halves[0] = out
    return tuple(halves)
