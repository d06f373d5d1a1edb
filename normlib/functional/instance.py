"""Instance normalization of arrays: group norm with a group a channel."""

from typing import cast

from numpy.typing import ArrayLike

from normlib.arrays import Array
from normlib.functional.groups import differentiate, normalize

__all__ = ["instance_norm", "instance_norm_backward", "instance_norm_forward"]


def instance_norm(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    r"""Instance normalization: each channel of a sample by its own mean and variance.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} g_c + b_c

    with the mean and the biased variance over all axes but those of samples and channels.

    Parameters, result and errors are those of `group_norm` with C groups.

    Raises
    ------
    ShapeError
        Also if a channel of a sample has one value alone.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", arXiv 1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> normlib.instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    return normalize(x, None, gain, bias, channel_axis, eps, out, statistics=False)[0]


def instance_norm_forward(
    x: ArrayLike,
    gain: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`instance_norm`, and the statistics that `instance_norm_backward` needs.

    Parameters and errors are those of `instance_norm`; so are the bits of `y`.

    Returns
    -------
    y : array of x's shape and type
    mean, rstd : arrays (N, C) of float64
        Mean and 1 / sqrt(variance + eps).

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, rstd = normlib.instance_norm_forward(x, eps=0)
    >>> mean, rstd
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    results = normalize(x, None, gain, bias, channel_axis, eps, out, statistics=True)
    return cast(tuple[Array, Array, Array], results)


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    gain: ArrayLike | None = None,
    *,
    channel_axis: int = 1,
) -> tuple[Array, Array | None, Array]:
    """Gradients of a loss through `instance_norm`: those of `group_norm` with C groups.

    Parameters, results and errors are those of `group_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, rstd = normlib.instance_norm_forward(x)
    >>> dx, dgain, dbias = normlib.instance_norm_backward(np.ones((1, 2, 2)), x, mean, rstd)
    >>> dx.ravel(), dbias
    (array([0., 0., 0., 0.]), array([2., 2.]))
    """
    return differentiate(dy, x, None, mean, rstd, gain, channel_axis)
