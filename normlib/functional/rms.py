"""Root-mean-square normalization of arrays."""

from typing import cast

from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import Array, Axis
from normlib.functional.rows import LAST, Pair, differentiate, normalize
from normlib.threads import threads_for

__all__ = ["rms_norm", "rms_norm_backward", "rms_norm_forward"]


def rms_norm(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""RMS normalization: each case by the root mean square of its own features.

    .. math:: y = \frac{x}{\sqrt{\frac{1}{F} \sum_i x_i^2 + \epsilon}} \odot g

    Parameters
    ----------
    x : array of floats, any shape
        float32, float64, or a half type: float16 or bfloat16, computed in float32. Of any library
        whose arrays NumPy can see. Any memory layout and byte order; copied only if it is not
        C-contiguous.
    gain : array, optional
        With x's sizes at the normalized axes, in x's order; cast to x's type.
    axis : int or tuple of int
        The axes to normalize over, those of the features.
    eps : float
        Added to the mean square; finite and at least 0. With 0, a row of zeros becomes NaN.
        PyTorch's default is the machine epsilon of x's type.
    out : array, optional
        Where to put the result: of x's shape and type, in either byte order. It may be `x` itself,
        or overlap any input.

    Returns
    -------
    y : array of x's shape and type
        `out` if given. A row that holds NaN becomes NaN; in one that holds Inf, infinite elements
        become NaN and the others 0, as the formula has it. No other row is touched.

    Raises
    ------
    DTypeError
        If an array is not of floats, or is out of NumPy's sight.
    ShapeError
        If the shape of gain or out does not fit, or an axis does not exist.
    ParameterError
        If eps is negative or not finite, or out is read-only or has elements that share memory.

    References
    ----------
    Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.rms_norm(np.array([[1.0, 7.0]]), eps=0)
    array([[0.2, 1.4]])
    """
    if axis is LAST:
        y = _kernels.rms_norm.rms_norm_plain(x, gain, eps, out, False, threads_for)
        if y is not None:
            return y
    results = normalize(x, gain, None, axis, eps, out, centered=False, statistics=False)
    return cast(Array, results[0])


def rms_norm_forward(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """`rms_norm`, and the statistic that `rms_norm_backward` needs.

    Parameters and errors are those of `rms_norm`; so are the bits of `y`.

    Returns
    -------
    y : array of x's shape and type
    rstd : array of float64
        1 / sqrt(mean square + eps), with the shape of the axes that are not normalized.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> y, rstd = normlib.rms_norm_forward(np.array([[1.0, 7.0]]), eps=0)
    >>> rstd
    array([0.2])
    """
    if axis is LAST:
        plain = _kernels.rms_norm.rms_norm_plain(x, gain, eps, out, True, threads_for)
        if plain is not None:
            return plain
    results = normalize(x, gain, None, axis, eps, out, centered=False, statistics=True)
    return cast(Pair, results)


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    axis: Axis = -1,
) -> tuple[Array, Array | None]:
    r"""Gradients of a loss through `rms_norm`.

    With :math:`r = 1 / \sqrt{\langle x^2 \rangle + \epsilon}`, :math:`\hat x = x r` and
    :math:`d = dy \odot g`,

    .. math:: dx = r (d - \hat x \langle d \odot \hat x \rangle), \quad
        dg = \sum dy \odot \hat x

    where the brackets are means over the features, and the sum runs over the cases.

    Parameters
    ----------
    dy : array of x's shape
        Gradient of the loss by `y`; cast to x's type.
    x, gain : arrays
        As they were given to `rms_norm_forward`.
    rstd : array
        As it returned it.
    axis : int or tuple of int
        As given to it.

    Returns
    -------
    dx : array of x's shape and type
    dgain : array of gain's shape and x's type, or None where gain was None

    Raises
    ------
    DTypeError, ShapeError
        If an array is of another type, or its shape does not fit x.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0, 7.0]])
    >>> y, rstd = normlib.rms_norm_forward(x, eps=0)
    >>> dx, dgain = normlib.rms_norm_backward(x, x, rstd, np.ones(2))
    >>> dx.round(12) + 0, dgain
    (array([[0., 0.]]), array([0.2, 9.8]))
    """
    if axis is LAST:
        plain = _kernels.rms_norm_backward.rms_norm_backward_plain(
            dy, x, rstd, gain, None, threads_for
        )
        if plain is not None:
            return plain
    gradients = differentiate(dy, x, None, rstd, gain, axis, centered=False)
    return cast(tuple[Array, Array | None], gradients)
