"""Statistics of the hidden state, time step by time step."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array, as_float, is_real
from normlib.errors import ParameterError, ShapeError
from normlib.rnn.arguments import check_lengths

__all__ = ["HiddenState", "hidden_state"]


class HiddenState(NamedTuple):
    """What `hidden_state` measures: arrays of float64, shape (T,), one value a time step.

    Attributes
    ----------
    norm : ndarray
        The Euclidean norm of a row's hidden state, averaged over rows.
    mean, spread : ndarray
        Mean and standard deviation over rows and units.
    saturation : ndarray
        The share of values whose magnitude is above the threshold.
    """

    norm: Array
    mean: Array
    spread: Array
    saturation: Array


def hidden_state(
    y: npt.ArrayLike, lengths: npt.ArrayLike | None = None, *, threshold: float = 0.9
) -> HiddenState:
    r"""Measure the hidden state at each time step.

    With :math:`h_{tnk}` the state of unit k in row n after time step t,

    .. math::
        \mathrm{norm}_t = \frac 1N \sum_n \sqrt{\sum_k h_{tnk}^2}, \qquad
        \mathrm{saturation}_t = \frac{1}{NH} \#\{(n, k) : |h_{tnk}| > \mathrm{threshold}\}.

    Parameters
    ----------
    y : array_like, shape (T, N, H)
        The output of an `RNN`, from inference or from ``forward``.
    lengths : array_like of int, shape (N,), optional
        Valid time steps of each row, as given to the RNN: padded ones do not count.
    threshold : float, default 0.9
        Above this magnitude a unit is saturated. For one that ends in a tanh, the derivative is
        below 0.19 there.

    Returns
    -------
    HiddenState
        NaN at a time step that no row has.

    Raises
    ------
    ShapeError
        If `y` does not have three axes, or `lengths` another shape than (N,) (a ``ValueError``).
    DTypeError
        If `y` is neither float32 nor float64, or `lengths` not integer (a ``TypeError``).
    ParameterError
        If `threshold` is not a number of at least 0, or a length is outside 0 to T (a
        ``ValueError``).

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.diagnostics import hidden_state
    >>> y = np.array([[[3.0, 4.0], [0.0, 0.0]]]) / 5
    >>> state = hidden_state(y, threshold=0.7)
    >>> state.norm, state.saturation
    (array([0.5]), array([0.25]))
    >>> hidden_state(y, lengths=[1, 0]).norm
    array([1.])
    """
    array = as_float(y, "y")
    if array.ndim != 3:
        raise ShapeError(f"y must have shape (T, N, H), time first; got {array.shape}")
    if not (is_real(threshold) and threshold >= 0):
        raise ParameterError(f"threshold must be a number of at least 0; got {threshold!r}")
    n_steps, n_batch, _ = array.shape
    valid = check_lengths(lengths, n_steps, n_batch)
    measured = np.full((len(HiddenState._fields), n_steps), np.nan)
    for step, h in enumerate(array):
        rows = h if valid is None else h[valid > step]
        if rows.size:
            rows = rows.astype(np.float64)
            with np.errstate(all="ignore"):  # a network that explodes is measured, too
                measured[:, step] = (
                    np.sqrt(np.square(rows).sum(axis=1)).mean(),
                    rows.mean(),
                    rows.std(),
                    np.mean(np.abs(rows) > threshold),
                )
    return HiddenState(*measured)
