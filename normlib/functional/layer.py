"""Layer normalization of arrays: check, view as rows of features, call a kernel."""

import functools
import math
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib._kernels.buffers import aligned_like
from normlib.arrays import (
    DOUBLE,
    Array,
    Axis,
    as_float,
    as_like,
    check_axes,
    check_eps,
    check_out,
    computing_dtype,
    required_like,
    writable_directly,
)
from normlib.functional import half
from normlib.threads import threads_for

__all__ = ["layer_norm", "layer_norm_backward", "layer_norm_forward"]

# CPython has one object for each small integer, so `is` finds the usual axis at once, and neither
# -1.0 nor an array. Anything that it misses is checked, and takes the longer way.
_LAST = -1


class _Rows(NamedTuple):
    """How x is seen as rows of features: the kept axes first, the normalized ones last."""

    order: tuple[int, ...]  # of x's axes
    kept: tuple[int, ...]  # shape of the statistics
    features: tuple[int, ...]  # shape of gain and bias
    trailing: bool  # the normalized axes already are the last ones
    what: str  # the axes, as error messages name them

    @classmethod
    def of(cls, x: Array, axis: Axis) -> "_Rows":
        if axis is _LAST and x.ndim > 0:
            return _rows(x.shape, (x.ndim - 1,), "axis -1 of x")
        return _rows(x.shape, check_axes(axis, x.ndim), f"axis {axis} of x")

    def flatten(self, x: Array) -> Array:
        """x as a C-contiguous (rows, features), copied only if it must be."""
        ordered = x if self.trailing else x.transpose(self.order)
        return np.ascontiguousarray(ordered).reshape(-1, math.prod(self.features))

    def restore(self, rows: Array, out: Array | None = None) -> Array:
        """Rows in the axes and shape of x, written to out if given."""
        y: Array = rows.reshape(self.kept + self.features)
        if not self.trailing:
            y = y.transpose(np.argsort(self.order))
        if out is None:
            return np.ascontiguousarray(y)
        out[...] = y
        return out


@functools.lru_cache(maxsize=256)
def _rows(shape: tuple[int, ...], axes: tuple[int, ...], what: str) -> _Rows:
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    order = kept + axes
    return _Rows(
        order,
        tuple(shape[a] for a in kept),
        tuple(shape[a] for a in axes),
        order == tuple(range(len(shape))),
        what,
    )


def _layer_norm(
    x: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float,
    out: Array | None,
    statistics: bool,
) -> tuple[Array, Array | None, Array | None]:
    eps = check_eps(eps)
    x = as_float(x, "x", half=True)
    view = _Rows.of(x, axis)
    gain = as_like(gain, "gain", view.features, computing_dtype(x.dtype), view.what)
    bias = as_like(bias, "bias", view.features, computing_dtype(x.dtype), view.what)
    check_out(out, x)
    if x.size == 0:
        y = np.empty(x.shape, x.dtype) if out is None else out
        nothing = np.full(view.kept, np.nan) if statistics else None
        return y, nothing, None if nothing is None else nothing.copy()
    rows = view.flatten(x)
    mean = np.empty(len(rows)) if statistics else None
    rstd = np.empty(len(rows)) if statistics else None
    direct = view.trailing and out is not None and writable_directly(out, rows, gain, bias)
    y_rows = out.reshape(rows.shape) if direct and out is not None else aligned_like(rows)
    _kernels.layer_norm.layer_norm_forward(
        rows, gain, bias, eps, y_rows, mean, rstd, threads_for(x.size)
    )
    y = out if direct and out is not None else view.restore(y_rows, out)
    if mean is None or rstd is None:
        return y, None, None
    return y, mean.reshape(view.kept), rstd.reshape(view.kept)


def layer_norm(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""Layer normalization: each case by the mean and variance of its own features.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \odot g + b, \quad
        \mu = \frac{1}{F} \sum_i x_i, \quad \sigma^2 = \frac{1}{F} \sum_i (x_i - \mu)^2

    Parameters
    ----------
    x : array of floats, any shape
        float32, float64, or a half type: float16 or bfloat16, computed in float32. Of any library
        whose arrays NumPy can see. Any memory layout and byte order; copied only if it is not
        C-contiguous.
    gain, bias : array, optional
        With x's sizes at the normalized axes, in x's order; cast to x's type.
    axis : int or tuple of int
        The axes to normalize over, those of the features.
    eps : float
        Added to the variance; finite and at least 0. With 0, a constant row becomes NaN.
    out : array, optional
        Where to put the result: of x's shape and type, in either byte order. It may be `x` itself,
        or overlap any input.

    Returns
    -------
    y : array of x's shape and type
        `out` if given. A row that holds NaN or Inf becomes NaN, and no other row does.

    Raises
    ------
    DTypeError
        If an array is not of floats, or is out of NumPy's sight.
    ShapeError
        If the shape of gain, bias or out does not fit, or an axis does not exist.
    ParameterError
        If eps is negative or not finite, or out is read-only or has elements that share memory.

    References
    ----------
    Ba, Kiros, Hinton, "Layer Normalization", arXiv 1607.06450, equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.layer_norm(np.array([[1.0, 2.0, 3.0]]), eps=0).round(3)
    array([[-1.225,  0.   ,  1.225]])
    """
    if axis is _LAST:
        y = _kernels.layer_norm.layer_norm_plain(x, gain, bias, eps, out, False, threads_for)
        if y is not None:
            return y
    return _layer_norm(x, gain, bias, axis, eps, out, statistics=False)[0]


def layer_norm_forward(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`layer_norm`, and the statistics that `layer_norm_backward` needs.

    Parameters and errors are those of `layer_norm`; so are the bits of `y`.

    Returns
    -------
    y : array of x's shape and type
    mean, rstd : arrays of float64
        Mean and 1 / sqrt(variance + eps), with the shape of the axes that are not normalized.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, mean, rstd = normlib.layer_norm_forward(np.array([[1.0, 2.0, 3.0]]), eps=0)
    >>> mean, rstd
    (array([2.]), array([1.22474487]))
    """
    if axis is _LAST:
        plain = _kernels.layer_norm.layer_norm_plain(x, gain, bias, eps, out, True, threads_for)
        if plain is not None:
            return plain
    results = _layer_norm(x, gain, bias, axis, eps, out, statistics=True)
    return cast(tuple[Array, Array, Array], results)


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> tuple[Array, Array | None, Array]:
    r"""Gradients of a loss through `layer_norm`.

    With :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}` and :math:`d = dy \odot g`,

    .. math:: dx = \frac{d - \langle d \rangle - \hat x \langle d \odot \hat x \rangle}
        {\sqrt{\sigma^2 + \epsilon}}, \quad
        dg = \sum dy \odot \hat x, \quad db = \sum dy

    where the brackets are means over the features, and the sums run over the cases.

    Parameters
    ----------
    dy : array of x's shape
        Gradient of the loss by `y`; cast to x's type.
    x, gain : arrays
        As they were given to `layer_norm_forward`.
    mean, rstd : arrays
        As it returned them.
    axis : int or tuple of int
        As given to it.

    Returns
    -------
    dx : array of x's shape and type
    dgain : array of gain's shape and x's type, or None where gain was None
    dbias : array of that shape and x's type

    Raises
    ------
    DTypeError, ShapeError
        If an array is of another type, or its shape does not fit x.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0, 2.0, 3.0]])
    >>> y, mean, rstd = normlib.layer_norm_forward(x)
    >>> dx, dgain, dbias = normlib.layer_norm_backward(np.array([[1.0, 1.0, 1.0]]), x, mean, rstd)
    >>> dx, dbias
    (array([[0., 0., 0.]]), array([1., 1., 1.]))
    """
    if axis is _LAST:
        plain = _kernels.layer_norm_backward.layer_norm_backward_plain(
            dy, x, mean, rstd, gain, threads_for
        )
        if plain is not None:
            return plain
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        gradients = layer_norm_backward(dy, half.widen(x), mean, rstd, gain, axis=axis)
        return cast(tuple[Array, Array | None, Array], half.rounded(x, gradients))
    view = _Rows.of(x, axis)
    dy = required_like(dy, "dy", x.shape, x.dtype, "x")
    mean = required_like(mean, "mean", view.kept, DOUBLE, "the other axes of x")
    rstd = required_like(rstd, "rstd", view.kept, DOUBLE, "the other axes of x")
    gain = as_like(gain, "gain", view.features, x.dtype, view.what)
    dgain = None if gain is None else np.zeros(view.features, x.dtype)
    dbias = np.zeros(view.features, x.dtype)
    if x.size == 0:
        return np.empty(x.shape, x.dtype), dgain, dbias
    rows = view.flatten(x)
    dx = aligned_like(rows)
    _kernels.layer_norm_backward.layer_norm_backward(
        view.flatten(dy), rows, gain, mean, rstd, dx, dgain, dbias, threads_for(x.size)
    )
    return view.restore(dx), dgain, dbias
