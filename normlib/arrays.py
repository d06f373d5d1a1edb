"""Checks of arrays and settings, and the views in which kernels take them.

An array is what NumPy can see without a copy: its own arrays, and those of libraries that offer
``__array_interface__``, ``__array__`` or ``__dlpack__``, such as PyTorch's and JAX's on the CPU.
"""

import math
import numbers
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from normlib._kernels.buffers import is_plain
from normlib.errors import DTypeError, ParameterError, ShapeError

Array = NDArray[Any]
Axis = int | Sequence[int]

SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)
HALF = np.dtype(np.float16)

# The most elements of float64 that an array can have.
MAX_SIZE = sys.maxsize // 8


# ---- arrays --------------------------------------------------------------------------------------


def as_float(x: ArrayLike, name: str, *, half: bool = False) -> Array:
    """x as an aligned array of native float32 or float64, copied only if it must be.

    With half, float16 and bfloat16 will do, too.
    """
    if is_plain(x):
        return x
    array = as_array(x, name)
    dtype = array.dtype
    if dtype is not SINGLE and dtype is not DOUBLE:
        if not (half and is_half(dtype)) and (dtype.kind != "f" or dtype.itemsize not in (4, 8)):
            types = "float32, float64, float16 or bfloat16" if half else "float32 or float64"
            raise DTypeError(
                f"{name} must be {types}; got {dtype}. Convert it, for example "
                f"with np.asarray({name}, dtype=np.float32)"
            )
        if not dtype.isnative:
            array = array.astype(dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is float16, or bfloat16 of the package ml_dtypes."""
    return dtype.itemsize == 2 and (dtype.kind == "f" or dtype.name == "bfloat16")


def computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which arrays of that one are computed."""
    return SINGLE if dtype.itemsize == 2 else dtype


def as_array(value: ArrayLike, name: str) -> Array:
    """value as an array of any type; DTypeError for what makes none, and for a masked one."""
    if isinstance(value, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} must be a plain array; got a masked one. Fill it first, for example with "
            f"{name}.filled(0), or pass mask= where the function has it"
        )
    if any(hasattr(value, attribute) for attribute in _PROTOCOLS) and not isinstance(
        value, np.ndarray | np.generic
    ):
        return _as_seen(value, name)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DTypeError(
            f"{name} must be an array, or nested lists whose lengths agree; got "
            f"{type(value).__name__} that NumPy cannot convert ({error})"
        ) from error


_PROTOCOLS = ("__array__", "__array_interface__", "__dlpack__")


def _as_seen(value: Any, name: str) -> Array:
    """An array of another library, through one of its protocols."""
    if getattr(value, "requires_grad", False):
        raise DTypeError(
            f"{name} must not require gradients, which normlib does not record; got a "
            f"{type(value).__name__} that does. Pass {name}.detach()"
        )
    try:
        torch = sys.modules.get("torch")
        if torch is not None and getattr(value, "dtype", None) is torch.bfloat16:
            return _as_brain(value.view(torch.int16).numpy(), name)
        if any(hasattr(value, attribute) for attribute in _PROTOCOLS[:2]):
            return np.asarray(value)
        return np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DTypeError(
            f"{name} must be an array that NumPy can see, in the memory of the CPU; got "
            f"{type(value).__name__} that it cannot ({error})"
        ) from error


def _as_brain(bits: Array, name: str) -> Array:
    try:
        import ml_dtypes
    except ImportError as error:
        raise DTypeError(
            f"{name} of bfloat16 needs the package ml_dtypes. Install it, for example with "
            "pip install 'normlib[half]'"
        ) from error
    return bits.view(ml_dtypes.bfloat16)


def as_dtype(array: Array, dtype: DTypeLike) -> Array:
    """array as a C-contiguous one of that dtype; what is too large for it becomes Inf, silently."""
    if array.dtype == dtype:
        return np.asarray(array, order="C")
    with np.errstate(all="ignore"):
        return np.asarray(array, dtype, order="C")


def as_like(
    value: ArrayLike | None, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], what: str
) -> Array | None:
    """value as a C-contiguous array of that dtype; ShapeError unless it has that shape."""
    if value is None:
        return None
    if is_plain(value) and value.dtype is dtype and value.shape == shape:
        return value
    array = as_float(value, name, half=True)
    if array.shape != shape:
        raise ShapeError(f"{name} must have shape {shape} to match {what}; got {array.shape}")
    return as_dtype(array, dtype)


def required_like(
    value: ArrayLike | None, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], what: str
) -> Array:
    """The same for an argument that may not be None."""
    array = as_like(value, name, shape, dtype, what)
    if array is None:
        raise DTypeError(f"{name} must be an array of shape {shape}; got None")
    return array


def check_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """mask as a C-contiguous boolean array of that shape."""
    if mask is None:
        return None
    array = as_array(mask, "mask")
    if array.dtype != np.bool_:
        raise DTypeError(f"mask must be boolean; got {array.dtype}. Compare, for example mask != 0")
    if array.shape != shape:
        raise ShapeError(
            f"mask must have shape {shape}, that of x without the channel axis; got {array.shape}"
        )
    return np.ascontiguousarray(array)


def check_out(out: Array | None, x: Array) -> None:
    """Refuse an out that cannot hold the result for x; it may have either byte order."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise DTypeError(f"out must be a NumPy array; got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise DTypeError("out must be a plain array; got a masked one. Pass its data, out.data")
    if out.dtype not in (x.dtype, x.dtype.newbyteorder()):
        raise DTypeError(f"out must have x's dtype, {x.dtype}; got {out.dtype}")
    if out.shape != x.shape:
        raise ShapeError(f"out must have x's shape, {x.shape}; got {out.shape}")
    if not out.flags.writeable:
        raise ParameterError("out must be writeable; got a read-only array")
    if _overlaps_itself(out):
        raise ParameterError(
            f"out must have memory of its own for every element; got strides {out.strides} for "
            f"shape {out.shape}. Make a new array, for example np.empty_like(x)"
        )


def _overlaps_itself(array: Array) -> bool:
    """Whether elements share memory, as in what np.broadcast_to returns.

    An array that was sliced or transposed nests: no axis reaches as far as one step of the next.
    """
    if array.flags.c_contiguous or array.size == 0:
        return False
    steps = zip(map(abs, array.strides), array.shape, strict=True)
    reach = 0  # from the first element to the last over the axes so far, in bytes
    for stride, n in sorted(step for step in steps if step[1] > 1):
        if stride < reach + array.itemsize:
            return True
        reach += stride * (n - 1)
    return False


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


# ---- settings ------------------------------------------------------------------------------------


def as_integer(name: str, value: Any, *, minimum: int, maximum: int | None = None) -> int:
    """Return `value` as an int, or say why argument `name` cannot be that."""
    try:
        integer = _index(value)
    except TypeError:
        integer = minimum - 1
    if integer < minimum:
        raise ParameterError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    if maximum is not None and integer > maximum:
        raise ParameterError(f"{name} must be at most {maximum}; got {value!r}")
    return integer


def _index(value: Any) -> int:
    """value as an int; TypeError for what is no integer, True and False included."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def is_real(value: object) -> bool:
    """Whether it is a real number of Python or NumPy: no string, no array, no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_eps(eps: float) -> float:
    """eps as a float; ParameterError unless it is a real number, finite and at least 0."""
    if type(eps) is float and 0 <= eps < math.inf:
        return eps
    try:
        # float() would take strings, too.
        value = float(eps) if is_real(eps) else math.nan
    except OverflowError:
        value = math.inf
    if not (value >= 0 and math.isfinite(value)):
        raise ParameterError(f"eps must be a finite number of at least 0; got {eps!r}")
    return value


def check_dtype(value: DTypeLike) -> np.dtype[Any]:
    """value as the dtype of a normalizer or network; DTypeError unless float32 or float64."""
    try:
        dtype = np.dtype(value)
    except Exception:  # np.dtype has them of many types, for strings above all
        dtype = np.dtype(object)
    # np.dtype(None) is float64, which nobody means who writes None.
    if value is None or dtype not in (SINGLE, DOUBLE):
        raise DTypeError(f"dtype must be float32 or float64; got {value!r}")
    return dtype


def check_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as sorted, non-negative integers."""
    if ndim == 0:
        raise ShapeError("x must have at least one axis to normalize over; got a scalar")
    try:
        try:
            named = [_index(axis)]
        except TypeError:
            named = [_index(one) for one in axis]  # type: ignore[union-attr]  # an int raises
    except TypeError:
        raise ParameterError(f"axis must be an integer or a tuple of them; got {axis!r}") from None
    if not named:
        raise ShapeError("axis must name at least one axis of x; got an empty tuple")
    axes = {one % ndim for one in named if -ndim <= one < ndim}
    if len(axes) < len(named):
        raise ShapeError(
            f"axis must name different axes of x, from {-ndim} to {ndim - 1}; got {axis!r}"
        )
    return tuple(sorted(axes))


def check_channel_axis(channel_axis: int, ndim: int) -> int:
    """channel_axis as a non-negative integer."""
    if type(channel_axis) is int and -ndim <= channel_axis < ndim:
        return channel_axis % ndim
    if ndim == 0:
        raise ShapeError("x must have a channel axis; got a scalar")
    try:
        axis = _index(channel_axis)
    except TypeError:
        raise ParameterError(f"channel_axis must be an integer; got {channel_axis!r}") from None
    if not -ndim <= axis < ndim:
        raise ShapeError(
            f"channel_axis must be from {-ndim} to {ndim - 1} for x of {ndim} axes; got {axis}"
        )
    return axis % ndim
