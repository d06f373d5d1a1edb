"""Mean and variance: of an array along axes, and of a stream of arrays."""

import math

import numpy as np
from numpy.typing import ArrayLike

from normlib import _kernels
from normlib.arrays import MAX_SIZE, Array, Axis, as_float, as_integer, check_axes
from normlib.errors import DTypeError, ShapeError
from normlib.functional import half
from normlib.threads import threads_for

__all__ = ["Moments", "moments"]


def moments(x: ArrayLike, axis: Axis = -1, *, keepdims: bool = False) -> tuple[Array, Array]:
    r"""Mean and biased variance along axes.

    .. math:: \mu = \frac{1}{F} \sum_i x_i, \qquad \sigma^2 = \frac{1}{F} \sum_i (x_i - \mu)^2

    Unlike ``x.var()`` of a float32 array, it keeps its digits where the mean dwarfs the spread,
    where squares overflow or underflow, and over long axes.

    Parameters
    ----------
    x : array of floats, any shape
        float32, float64, or a half type: float16 or bfloat16. Any memory layout and byte order.
    axis : int or tuple of int
        The axes to reduce; at least one.
    keepdims : bool
        Keep them, with size 1.

    Returns
    -------
    mean, var : arrays of float64
        With the shape of the other axes. NaN where an axis of size 0 is reduced.

    Raises
    ------
    DTypeError
        If `x` is of another type.
    ShapeError
        If an axis does not exist, is named twice, or none is named.

    References
    ----------
    Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> mean, var = normlib.moments(np.float32([[10000, 10001, 10002], [1, 1, 1]]))
    >>> mean, var
    (array([1.0001e+04, 1.0000e+00]), array([0.66666667, 0.        ]))
    """
    x = as_float(x, "x", half=True)
    if x.dtype.itemsize == 2:
        x = half.widen(x)
    axes = check_axes(axis, x.ndim)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a in kept)
    n_features = math.prod(x.shape[a] for a in axes)
    if x.size == 0:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    rows = np.ascontiguousarray(x.transpose(kept + axes)).reshape(-1, n_features)
    mean = np.empty(len(rows))
    var = np.empty(len(rows))
    _kernels.moments.moments(rows, mean, var, threads_for(x.size))
    return mean.reshape(shape), var.reshape(shape)


class Moments:
    """Mean and biased variance of a stream of arrays, one value a feature.

    Accumulators of parts of a stream can be merged; the result is that of the whole stream, to
    rounding in float64 (Chan, Golub, LeVeque 1983).

    Parameters
    ----------
    features : int
        Size F of the last axis of every array.

    Attributes
    ----------
    count : int
        Rows seen.
    mean, var : arrays of float64, (F,)
        NaN as long as there were none.

    Raises
    ------
    ParameterError
        If `features` is not an integer of at least 0 (a ``ValueError``).

    Examples
    --------
    >>> import numpy as np
    >>> import normlib
    >>> seen = normlib.Moments(2)
    >>> seen.update(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> seen.update(np.array([[5.0, 10.0]]))
    >>> seen.count, seen.mean
    (3, array([ 3., 10.]))
    """

    def __init__(self, features: int) -> None:
        self.features = as_integer("features", features, minimum=0, maximum=MAX_SIZE)
        self.count = 0
        self.mean = np.full(self.features, np.nan)
        self.var = np.full(self.features, np.nan)

    def update(self, x: ArrayLike) -> None:
        """Add the rows of x (..., F); ShapeError if its last axis has another size."""
        x = as_float(x, "x", half=True)
        if x.ndim == 0 or x.shape[-1] != self.features:
            raise ShapeError(f"x must have shape (..., {self.features}); got {x.shape}")
        rows = x.reshape(math.prod(x.shape[:-1]), self.features)
        if len(rows):
            self._merge(len(rows), *moments(rows, axis=0))

    def merge(self, other: "Moments") -> None:
        """Add all that another accumulator of as many features has seen."""
        if not isinstance(other, Moments):
            raise DTypeError(f"other must be Moments; got {type(other).__name__}")
        if other.features != self.features:
            raise ShapeError(f"other must have {self.features} features; got {other.features}")
        if other.count:
            self._merge(other.count, other.mean, other.var)

    def _merge(self, count: int, mean: Array, var: Array) -> None:
        if not self.count:
            self.count, self.mean, self.var = count, mean.copy(), var.copy()
            return
        total = self.count + count
        weight = count / total
        with np.errstate(all="ignore"):  # NaN and Inf are as silent as in moments()
            delta = mean - self.mean
            spread = delta**2 * (weight * (1 - weight))
            self.mean = self.mean + delta * weight
            self.var = self.var + (var - self.var) * weight + spread
        self.count = total
