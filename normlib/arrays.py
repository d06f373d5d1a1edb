"""Checks of arrays and settings, and the views in which kernels take them."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple
from numpy.typing import ArrayLike, NDArray

from normlib.errors import DTypeError, ParameterError, ShapeError

Array = NDArray[Any]
Axis = int | Sequence[int]

SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


def as_float(x: ArrayLike, name: str) -> Array:
    """x as an aligned array of native float32 or float64, copied only if it must be."""
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} must be a plain array; got a masked one. Fill it first, for example with "
            f"{name}.filled(0), or pass mask= where the function has it"
        )
    array = np.asarray(x)
    dtype = array.dtype
    if dtype is not SINGLE and dtype is not DOUBLE:
        if dtype.kind != "f" or dtype.itemsize not in (4, 8):
            raise DTypeError(
                f"{name} must be float32 or float64; got {dtype}. Convert it, for example with "
                f"np.asarray({name}, dtype=np.float32)"
            )
        array = array.astype(dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def as_like(
    value: ArrayLike | None, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], what: str
) -> Array | None:
    """value as a C-contiguous array of that dtype; ShapeError unless it has that shape."""
    if value is None:
        return None
    array = as_float(value, name)
    if array.shape != shape:
        raise ShapeError(f"{name} must have shape {shape} to match {what}; got {array.shape}")
    return np.ascontiguousarray(array, dtype=dtype)


def required_like(
    value: ArrayLike, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], what: str
) -> Array:
    """The same for an argument that may not be None."""
    array = as_like(value, name, shape, dtype, what)
    if array is None:
        raise DTypeError(f"{name} must be an array of shape {shape}; got None")
    return array


def check_eps(eps: float) -> float:
    """eps as a float; ParameterError unless it is finite and at least 0."""
    try:
        value = float(eps)
    except (TypeError, ValueError):
        raise ParameterError(f"eps must be a finite number of at least 0; got {eps!r}") from None
    if not (value >= 0 and math.isfinite(value)):
        raise ParameterError(f"eps must be a finite number of at least 0; got {eps!r}")
    return value


def check_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as sorted, non-negative integers."""
    if ndim == 0:
        raise ShapeError("x must have at least one axis to normalize over; got a scalar")
    try:
        axes = normalize_axis_tuple(axis, ndim)
    except TypeError:
        raise ParameterError(f"axis must be an integer or a tuple of them; got {axis!r}") from None
    except ValueError as error:
        raise ShapeError(
            f"axis must name different axes of x, from {-ndim} to {ndim - 1}; "
            f"got {axis!r} ({error})"
        ) from None
    if not axes:
        raise ShapeError("axis must name at least one axis of x; got an empty tuple")
    return tuple(sorted(axes))


def check_channel_axis(channel_axis: int, ndim: int) -> int:
    """channel_axis as a non-negative integer."""
    if ndim == 0:
        raise ShapeError("x must have a channel axis; got a scalar")
    try:
        return normalize_axis_index(operator.index(channel_axis), ndim)
    except TypeError:
        raise ParameterError(f"channel_axis must be an integer; got {channel_axis!r}") from None
    except ValueError:
        raise ShapeError(
            f"channel_axis must be from {-ndim} to {ndim - 1} for x of {ndim} axes; "
            f"got {channel_axis}"
        ) from None


def check_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """mask as a C-contiguous boolean array of that shape."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        raise DTypeError(f"mask must be boolean; got {array.dtype}. Compare, for example mask != 0")
    if array.shape != shape:
        raise ShapeError(
            f"mask must have shape {shape}, that of x without the channel axis; got {array.shape}"
        )
    return np.ascontiguousarray(array)


def check_out(out: Array | None, x: Array) -> None:
    """Refuse an out that cannot hold the result for x."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise DTypeError(f"out must be a NumPy array; got {type(out).__name__}")
    if out.dtype != x.dtype:
        raise DTypeError(f"out must have x's dtype, {x.dtype}; got {out.dtype}")
    if out.shape != x.shape:
        raise ShapeError(f"out must have x's shape, {x.shape}; got {out.shape}")
    if not out.flags.writeable:
        raise ParameterError("out must be writeable; got a read-only array")


def writable_directly(out: Array, x: Array, *others: Array | None) -> bool:
    """Whether a kernel that reads x and others may write to out as it goes.

    It may write over x element by element, but over no other part of what it has yet to read.
    """
    if not (out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative):
        return False
    if np.may_share_memory(out, x) and (
        out.__array_interface__["data"][0] != x.__array_interface__["data"][0]
    ):
        return False
    return not any(other is not None and np.may_share_memory(out, other) for other in others)
