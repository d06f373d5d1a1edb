"""Group normalization of arrays."""

from typing import cast

from numpy.typing import ArrayLike

from normlib.arrays import Array, as_integer
from normlib.functional.groups import differentiate, normalize

__all__ = ["group_norm", "group_norm_backward", "group_norm_forward"]


def group_norm(
    x: ArrayLike,
    groups: int,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""Group normalization: each group of channels of a sample by its own mean and variance.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} g_c + b_c

    with the mean and the biased variance over the channels of group g and all axes but those of
    samples and channels, of sample n.

    Parameters
    ----------
    x : array of floats, shape (N, ..., C, ...)
        float32, float64, or a half type, computed in float32. Samples first.
        Any memory layout and byte order; copied only if it is not C-contiguous or its channels are
        not its second axis.
    groups : int
        G, which divides C: each group has C / G neighbouring channels. 1 normalizes a sample as a
        whole, C is `instance_norm`.
    gain, bias : array (C,), optional
        Cast to x's type.
    channel_axis : int
        Where the C channels are: 1 for (N, C, height, width), -1 for (N, height, width, C).
    eps : float
        Added to the variance; finite and at least 0. With 0, a constant group becomes NaN.
    out : array, optional
        Where to put the result: of x's shape and type, in either byte order. It may be `x` itself,
        or overlap any input.

    Returns
    -------
    y : array of x's shape and type
        `out` if given. A group that holds NaN or Inf becomes NaN, and no other does.

    Raises
    ------
    DTypeError
        If an array is not of floats, or is out of NumPy's sight.
    ShapeError
        If the shape of an argument does not fit, the axis does not exist or is the first, or
        groups does not divide C.
    ParameterError
        If groups is not an integer of at least 1, eps is negative or not finite, or out is
        read-only or has elements that share memory.

    References
    ----------
    Wu, He, "Group Normalization", arXiv 1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), groups=2, eps=0)
    array([[-1.,  1., -1.,  1.]])
    """
    return normalize(x, _given(groups), gain, bias, channel_axis, eps, out, statistics=False)[0]


def group_norm_forward(
    x: ArrayLike,
    groups: int,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`group_norm`, and the statistics that `group_norm_backward` needs.

    Parameters and errors are those of `group_norm`; so are the bits of `y`.

    Returns
    -------
    y : array of x's shape and type
    mean, rstd : arrays (N, G) of float64
        Mean and 1 / sqrt(variance + eps).

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, rstd = normlib.group_norm_forward(x, groups=2, eps=0)
    >>> mean, rstd
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    results = normalize(x, _given(groups), gain, bias, channel_axis, eps, out, statistics=True)
    return cast(tuple[Array, Array, Array], results)


def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    groups: int,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
) -> tuple[Array, Array | None, Array]:
    r"""Gradients of a loss through `group_norm`.

    With :math:`\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}` and :math:`d = dy \, g_c`,

    .. math:: dx = \frac{d - \langle d \rangle - \hat x \langle d \hat x \rangle}
        {\sqrt{\sigma^2 + \epsilon}}, \quad
        dg_c = \sum dy \, \hat x, \quad db_c = \sum dy

    where the brackets are means over a group, and the sums run over all axes but the channels'.

    Parameters
    ----------
    dy : array of x's shape
        Gradient of the loss by `y`; cast to x's type.
    x, groups, gain, channel_axis
        As they were given to `group_norm_forward`.
    mean, rstd : arrays (N, G)
        As it returned them.

    Returns
    -------
    dx : array of x's shape and type
    dgain : array (C,) of x's type, or None where gain was None
    dbias : array (C,) of x's type

    Raises
    ------
    DTypeError, ShapeError, ParameterError
        As for `group_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, rstd = normlib.group_norm_forward(x, groups=2)
    >>> dx, dgain, dbias = normlib.group_norm_backward(np.ones((1, 4)), x, 2, mean, rstd)
    >>> dx, dbias
    (array([[0., 0., 0., 0.]]), array([1., 1., 1., 1.]))
    """
    return differentiate(dy, x, _given(groups), mean, rstd, gain, channel_axis)


def _given(groups: int) -> int:
    """groups, which is not None."""
    if type(groups) is int and groups > 0:
        return groups
    return as_integer("groups", groups, minimum=1)
