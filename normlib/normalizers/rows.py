"""What a normalizer offers to loops that run without Python: a C function for one row."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import LowLevelCallable

from normlib.errors import PluginError, SignatureError
from normlib.normalizers.signatures import refusal

__all__ = ["RowFunctions", "check_rows", "low_level"]

Array: TypeAlias = npt.NDArray[Any]


#: As many as the loop has room for (``MAX_PARAMETERS`` of recurrent_run.pxd).
MOST_PARAMETERS = 4


class RowFunctions(NamedTuple):
    """A normalizer's work on one row, compiled: what `Normalizer.row_functions` returns.

    Attributes
    ----------
    forward, backward : scipy.LowLevelCallable or None
        C functions, called without the GIL and from several threads at once. Both None is the
        identity; backward alone None leaves training to the Python methods.
    parameters : tuple of ndarray or None
        Handed to the functions in this order, at most four, of the normalizer's dtype and
        C-contiguous: shape (F,), or (steps, F) where each time step has a row and later steps use
        the last. Without a name it may be of any size, not F alone: a setting that the functions
        read. None is handed over as NULL.
    names : tuple of str or None
        Which of the normalizer's parameters each one is, for its gradient; None for none of them.
    cache_size : int
        Numbers, float64, that ``forward`` keeps of a row for ``backward``.

    Notes
    -----
    With T float or double, as the normalizer's dtype, the functions are::

        void forward(const T *x, T *y, intptr_t features, const T **parameters, double eps,
                     double *cache);
        void backward(const T *dy, const T *x, T *dx, intptr_t features, const T **parameters,
                      double eps, const double *cache, double **gradients);

    - A row has ``features`` elements, at any address that is a multiple of the element's size.
      Nothing that is written overlaps anything else.
    - ``parameters[k]`` is the array of that place, for this time step.
    - ``cache`` has ``cache_size`` numbers, in inference too, and is NULL if that is 0. Forward
      writes them all that backward of the same row will read.
    - ``gradients[k]``, of ``features`` numbers, already holds the sums of other rows: the row's own
      gradient is added. It is NULL where the parameter is None or has no name.
    - The result depends on the arguments alone, to the bit. NaN and Inf are values like others.

    ``const`` may be left out; any integer of a pointer's size may stand for ``intptr_t``,
    ``void *`` for any pointer and ``void **`` for any pointer to pointers, but then nothing tells
    float from double. `normlib.testing.check_normalizer` compares the functions with the Python
    methods.
    """

    forward: LowLevelCallable | None
    backward: LowLevelCallable | None
    parameters: tuple[Array | None, ...] = ()
    names: tuple[str | None, ...] = ()
    cache_size: int = 0


def check_rows(owner: str, rows: RowFunctions, dtype: np.dtype[Any]) -> None:
    """Check what a normalizer offers, as far as a loop without Python must rely on it.

    Parameters
    ----------
    owner : str
        Follows "the row functions" in the message.
    rows : RowFunctions
        What was offered.
    dtype : numpy.dtype
        Of the normalizer.

    Raises
    ------
    SignatureError
        If a function is not a `scipy.LowLevelCallable` of the right signature (a ``TypeError``).
    PluginError
        If anything else is wrong (a ``ValueError``).
    """
    if not isinstance(rows, RowFunctions):
        raise PluginError(f"the row functions {owner} must be a RowFunctions; got {rows!r}")
    forward, backward, parameters, names, cache_size = rows
    for method, function in (("forward", forward), ("backward", backward)):
        wrong = None if function is None else refusal(function, method, dtype)
        if wrong is not None:
            raise SignatureError(f"{method} of the row functions {owner} {wrong}")
    if len(names) != len(parameters) or len(parameters) > MOST_PARAMETERS:
        raise PluginError(
            f"the row functions {owner} must have at most {MOST_PARAMETERS} parameters, and as "
            f"many names; got {len(parameters)} and {len(names)}"
        )
    if type(cache_size) is not int or cache_size < 0:
        raise PluginError(
            f"the row functions {owner} must have a cache_size of at least 0, an integer; got "
            f"{cache_size!r}"
        )


class OwnFunction(LowLevelCallable):  # type: ignore[misc]  # scipy has no types
    """One of normlib's own row functions.

    ``rows`` is a capsule of the same for a few rows (``NormRows`` of norm_rows.pxd), or None.
    """

    rows: object | None


@functools.cache
def low_level(
    capsule: Callable[[bool], object],
    dtype: np.dtype[Any],
    rows: Callable[[bool], object] | None = None,
) -> LowLevelCallable:
    """Return one of normlib's own row functions, from what makes its capsules for float or not."""
    single = dtype == np.float32
    function = OwnFunction(capsule(single))
    function.rows = None if rows is None else rows(single)
    return function
