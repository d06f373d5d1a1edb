"""Normalization of a sum x + residual, as between the blocks of a transformer, in one pass."""

from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib._kernels.buffers import aligned_like
from normlib.arrays import (
    Array,
    Axis,
    as_float,
    as_like,
    check_eps,
    check_out,
    computing_dtype,
    required_like,
    writable_directly,
)
from normlib.errors import ParameterError
from normlib.functional.layer import _LAST, _Rows, layer_norm_backward
from normlib.functional.rms import rms_norm_backward
from normlib.threads import threads_for

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
]

Pair = tuple[Array, Array]


def _add_norm(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float,
    out: Pair | None,
    statistics: bool,
    *,
    centered: bool,
) -> tuple[Array, Array, Array | None, Array | None]:
    """y, the sum, its mean (if centered) and rstd: layer norm if centered, else RMS norm."""
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    view = _Rows.of(x, axis)
    residual = required_like(residual, "residual", x.shape, x.dtype, "x")
    gain = as_like(gain, "gain", view.features, computing_dtype(x.dtype), view.what)
    bias = as_like(bias, "bias", view.features, computing_dtype(x.dtype), view.what)
    _check_pair(out, x)
    if x.size == 0:
        y, total = out or (np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype))
        nothing = np.full(view.kept, np.nan)
        return y, total, nothing, nothing.copy()
    rows, residual_rows = view.flatten(x), view.flatten(residual)
    targets: list[Array | None] = [None, None] if out is None else list(out)
    direct = [
        target is not None
        and view.trailing
        and writable_directly(target, rows, gain, bias)
        and writable_directly(target, residual_rows)
        for target in targets
    ]
    y, total = (
        target.reshape(rows.shape) if target is not None and fits else aligned_like(rows)
        for target, fits in zip(targets, direct, strict=True)
    )
    mean = np.empty(len(rows)) if statistics and centered else None
    rstd = np.empty(len(rows)) if statistics else None
    n_threads = threads_for(x.size)
    if centered:
        _kernels.layer_norm.add_layer_norm_forward(
            rows, residual_rows, gain, bias, eps, y, total, mean, rstd, n_threads
        )
    else:
        _kernels.rms_norm.add_rms_norm_forward(
            rows, residual_rows, gain, eps, y, total, rstd, n_threads
        )
    y, total = (
        target if target is not None and fits else view.restore(array, target)
        for array, target, fits in zip((y, total), targets, direct, strict=True)
    )
    kept = [None if one is None else one.reshape(view.kept) for one in (mean, rstd)]
    return y, total, kept[0], kept[1]


def _check_pair(out: Pair | None, x: Array) -> None:
    if out is None:
        return
    if not isinstance(out, tuple) or len(out) != 2:
        raise ParameterError(
            "out must be a tuple of two arrays, one for y and one for x + residual; got "
            f"{type(out).__name__}"
        )
    for one in out:
        if one is None:
            raise ParameterError("out must be a tuple of two arrays; got None in it")
        check_out(one, x)
    if np.shares_memory(*out):
        raise ParameterError("the two arrays of out must not share memory")


def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Pair | None = None,
) -> Pair:
    """Layer normalization of a sum, and the sum, in one pass over memory.

    Parameters
    ----------
    x, residual : arrays of floats, of one shape
        What is added. The result has x's type, and residual is cast to it.
    gain, bias, axis, eps
        As for `layer_norm`.
    out : tuple of two arrays, optional
        Where to put y and the sum: of x's shape and type. Either may be `x` or `residual`.

    Returns
    -------
    y : array of x's shape and type
        The bits of ``layer_norm(x + residual, gain, bias)``.
    total : array of x's shape and type
        ``x + residual``, the residual of the next block.

    Raises
    ------
    DTypeError, ShapeError, ParameterError
        As for `layer_norm`; also if residual has another shape than x, or the arrays of `out` share
        memory.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total = normlib.add_layer_norm(np.array([[1.0, 1.0]]), np.array([[0.0, 2.0]]), eps=0)
    >>> y, total
    (array([[-1.,  1.]]), array([[1., 3.]]))
    """
    if axis is _LAST:
        pair = _kernels.layer_norm.add_layer_norm_plain(
            x, residual, gain, bias, eps, out, False, threads_for
        )
        if pair is not None:
            return pair
    return _add_norm(x, residual, gain, bias, axis, eps, out, False, centered=True)[:2]


def add_layer_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Pair | None = None,
) -> tuple[Array, Array, Array, Array]:
    """`add_layer_norm`, and the statistics that `add_layer_norm_backward` needs.

    Returns
    -------
    y, total : arrays of x's shape and type
    mean, rstd : arrays of float64
        Of the sum, as `layer_norm_forward` returns them.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> one = np.array([[1.0, 3.0]])
    >>> y, total, mean, rstd = normlib.add_layer_norm_forward(one, one, eps=0)
    >>> mean, rstd
    (array([4.]), array([0.5]))
    """
    if axis is _LAST:
        plain = _kernels.layer_norm.add_layer_norm_plain(
            x, residual, gain, bias, eps, out, True, threads_for
        )
        if plain is not None:
            return plain
    results = _add_norm(x, residual, gain, bias, axis, eps, out, True, centered=True)
    return cast(tuple[Array, Array, Array, Array], results)


def _plus(dx: Array, dtotal: ArrayLike | None) -> Array:
    if dtotal is not None:
        dx += required_like(dtotal, "dtotal", dx.shape, computing_dtype(dx.dtype), "x")
    return dx


def add_layer_norm_backward(
    dy: ArrayLike,
    dtotal: ArrayLike | None,
    total: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> tuple[Array, Array | None, Array]:
    """Gradients of a loss through `add_layer_norm`.

    Parameters
    ----------
    dy, dtotal : arrays of x's shape
        Gradients of the loss by `y` and by `total`; `dtotal` None is one of zeros.
    total, mean, rstd : arrays
        As `add_layer_norm_forward` returned them.
    gain, axis
        As given to it.

    Returns
    -------
    dx : array of total's shape and type
        The gradient by x, and that by residual: they are equal.
    dgain : array of gain's shape, or None where gain was None
    dbias : array of that shape

    Raises
    ------
    DTypeError, ShapeError
        As for `layer_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> one = np.array([[1.0, 3.0]])
    >>> y, total, mean, rstd = normlib.add_layer_norm_forward(one, one)
    >>> ones = np.ones((1, 2))
    >>> dx, dgain, dbias = normlib.add_layer_norm_backward(ones, 2 * ones, total, mean, rstd)
    >>> dx
    array([[2., 2.]])
    """
    dx, dgain, dbias = layer_norm_backward(dy, total, mean, rstd, gain, axis=axis)
    return _plus(dx, dtotal), dgain, dbias


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Pair | None = None,
) -> Pair:
    """RMS normalization of a sum, and the sum, in one pass over memory.

    Parameters
    ----------
    x, residual : arrays of floats, of one shape
        What is added. The result has x's type, and residual is cast to it.
    gain, axis, eps
        As for `rms_norm`.
    out : tuple of two arrays, optional
        Where to put y and the sum: of x's shape and type. Either may be `x` or `residual`.

    Returns
    -------
    y : array of x's shape and type
        The bits of ``rms_norm(x + residual, gain)``.
    total : array of x's shape and type
        ``x + residual``, the residual of the next block.

    Raises
    ------
    DTypeError, ShapeError, ParameterError
        As for `rms_norm`; also if residual has another shape than x, or the arrays of `out` share
        memory.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total = normlib.add_rms_norm(np.array([[1.0, 3.0]]), np.array([[0.0, 4.0]]), eps=0)
    >>> y, total
    (array([[0.2, 1.4]]), array([[1., 7.]]))
    """
    if axis is _LAST:
        pair = _kernels.rms_norm.add_rms_norm_plain(x, residual, gain, eps, out, False, threads_for)
        if pair is not None:
            return pair
    return _add_norm(x, residual, gain, None, axis, eps, out, False, centered=False)[:2]


def add_rms_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Pair | None = None,
) -> tuple[Array, Array, Array]:
    """`add_rms_norm`, and the statistic that `add_rms_norm_backward` needs.

    Returns
    -------
    y, total : arrays of x's shape and type
    rstd : array of float64
        Of the sum, as `rms_norm_forward` returns it.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total, rstd = normlib.add_rms_norm_forward(np.array([[1.0]]), np.array([[3.0]]), eps=0)
    >>> rstd
    array([0.25])
    """
    if axis is _LAST:
        plain = _kernels.rms_norm.add_rms_norm_plain(x, residual, gain, eps, out, True, threads_for)
        if plain is not None:
            return plain
    y, total, _, rstd = _add_norm(x, residual, gain, None, axis, eps, out, True, centered=False)
    return y, total, cast(Array, rstd)


def add_rms_norm_backward(
    dy: ArrayLike,
    dtotal: ArrayLike | None,
    total: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> tuple[Array, Array | None]:
    """Gradients of a loss through `add_rms_norm`.

    Parameters
    ----------
    dy, dtotal : arrays of x's shape
        Gradients of the loss by `y` and by `total`; `dtotal` None is one of zeros.
    total, rstd : arrays
        As `add_rms_norm_forward` returned them.
    gain, axis
        As given to it.

    Returns
    -------
    dx : array of total's shape and type
        The gradient by x, and that by residual: they are equal.
    dgain : array of gain's shape, or None where gain was None

    Raises
    ------
    DTypeError, ShapeError
        As for `rms_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total, rstd = normlib.add_rms_norm_forward(np.ones((1, 2)), np.ones((1, 2)), eps=0)
    >>> dx, dgain = normlib.add_rms_norm_backward(y, 3 * y, total, rstd)
    >>> dx
    array([[3., 3.]])
    """
    dx, dgain = rms_norm_backward(dy, total, rstd, gain, axis=axis)
    return _plus(dx, dtotal), dgain
