"""Layer normalization of arrays."""

from typing import cast

from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import Array, Axis
from normlib.functional.rows import LAST, differentiate, normalize
from normlib.threads import threads_for

__all__ = ["layer_norm", "layer_norm_backward", "layer_norm_forward"]


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
    if axis is LAST:
        y = _kernels.layer_norm.layer_norm_plain(x, gain, bias, eps, out, False, threads_for)
        if y is not None:
            return y
    results = normalize(x, gain, bias, axis, eps, out, centered=True, statistics=False)
    return cast(Array, results[0])


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
    if axis is LAST:
        plain = _kernels.layer_norm.layer_norm_plain(x, gain, bias, eps, out, True, threads_for)
        if plain is not None:
            return plain
    results = normalize(x, gain, bias, axis, eps, out, centered=True, statistics=True)
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
    if axis is LAST:
        plain = _kernels.layer_norm_backward.layer_norm_backward_plain(
            dy, x, mean, rstd, gain, None, threads_for
        )
        if plain is not None:
            return plain
    gradients = differentiate(dy, x, mean, rstd, gain, axis, centered=True)
    return cast(tuple[Array, Array | None, Array], gradients)
