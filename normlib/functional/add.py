"""Normalization of a sum x + residual, as between the blocks of a transformer, in one pass."""

from typing import Any

from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import Array, Axis
from normlib.functional.rows import LAST, Pair, differentiate, normalize
from normlib.threads import threads_for

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
]


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
    pair: Pair = _forward(x, residual, gain, bias, axis, eps, out, True, False)
    return pair


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
    results: tuple[Array, Array, Array, Array] = _forward(
        x, residual, gain, bias, axis, eps, out, True, True
    )
    return results


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
    gradients: tuple[Array, Array | None, Array] = _backward(
        dy, dtotal, total, mean, rstd, gain, axis, True
    )
    return gradients


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

    Parameters and errors are those of `add_layer_norm`, but for the bias, which RMS norm has not.

    Returns
    -------
    y : array of x's shape and type
        The bits of ``rms_norm(x + residual, gain)``.
    total : array of x's shape and type
        ``x + residual``, the residual of the next block.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total = normlib.add_rms_norm(np.array([[1.0, 3.0]]), np.array([[0.0, 4.0]]), eps=0)
    >>> y, total
    (array([[0.2, 1.4]]), array([[1., 7.]]))
    """
    pair: Pair = _forward(x, residual, gain, None, axis, eps, out, False, False)
    return pair


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
    results: tuple[Array, Array, Array] = _forward(
        x, residual, gain, None, axis, eps, out, False, True
    )
    return results


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

    Parameters and errors are those of `add_layer_norm_backward`, but for the mean.

    Returns
    -------
    dx : array of total's shape and type
        The gradient by x, and that by residual: they are equal.
    dgain : array of gain's shape, or None where gain was None

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, total, rstd = normlib.add_rms_norm_forward(np.ones((1, 2)), np.ones((1, 2)), eps=0)
    >>> dx, dgain = normlib.add_rms_norm_backward(y, 3 * y, total, rstd)
    >>> dx
    array([[3., 3.]])
    """
    gradients: tuple[Array, Array | None] = _backward(
        dy, dtotal, total, None, rstd, gain, axis, False
    )
    return gradients


def _forward(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None,
    bias: ArrayLike | None,
    axis: Axis,
    eps: float,
    out: Pair | None,
    centered: bool,
    statistics: bool,
) -> Any:
    """(y, total), and with statistics mean (if centered) and rstd: of layer norm, or RMS norm."""
    if axis is LAST:
        if centered:
            kernel: Any = _kernels.layer_norm.add_layer_norm_plain
            plain = kernel(x, residual, gain, bias, eps, out, statistics, threads_for)
        else:
            kernel = _kernels.rms_norm.add_rms_norm_plain
            plain = kernel(x, residual, gain, eps, out, statistics, threads_for)
        if plain is not None:
            return plain
    return normalize(
        x, gain, bias, axis, eps, out,
        centered=centered, statistics=statistics, residual=residual, adds=True,
    )  # fmt: skip


def _backward(
    dy: ArrayLike,
    dtotal: ArrayLike | None,
    total: ArrayLike,
    mean: ArrayLike | None,
    rstd: ArrayLike,
    gain: ArrayLike | None,
    axis: Axis,
    centered: bool,
) -> Any:
    """dx, dgain, and dbias if centered."""
    if axis is LAST:
        if centered:
            kernel: Any = _kernels.layer_norm_backward.layer_norm_backward_plain
            plain = kernel(dy, total, mean, rstd, gain, dtotal, threads_for)
        else:
            kernel = _kernels.rms_norm_backward.rms_norm_backward_plain
            plain = kernel(dy, total, rstd, gain, dtotal, threads_for)
        if plain is not None:
            return plain
    return differentiate(dy, total, mean, rstd, gain, axis, dtotal, centered=centered, name="total")
