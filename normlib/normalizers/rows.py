"""What a normalizer offers to loops that run without Python: a C function for one row."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["RowFunctions"]

Array: TypeAlias = npt.NDArray[Any]


class RowFunctions(NamedTuple):
    """A normalizer's work on one row, compiled: see `Normalizer.row_functions`.

    Attributes
    ----------
    forward, backward : PyCapsule or None
        The C functions, as ``normlib/_kernels/norm_rows.pxd`` declares them. Both None is the
        identity.
    parameters : tuple of ndarray or None
        Handed to the functions in this order, of the normalizer's dtype and C-contiguous: shape
        (F,), or (steps, F) where each time step has a row and later steps use the last. Without a
        name it may be of any size, not F alone: a setting that the functions read.
    names : tuple of str or None
        Which of the normalizer's parameters each one is, for its gradient; None for none of them.
    cache_size : int
        Numbers, float64, that ``forward`` keeps of a row for ``backward``.
    """

    forward: object
    backward: object
    parameters: tuple[Array | None, ...] = ()
    names: tuple[str | None, ...] = ()
    cache_size: int = 0

    def site(
        self, features: int, eps: float, cache: npt.NDArray[np.float64] | None
    ) -> tuple[object, object, int, tuple[Array | None, ...], float, Any]:
        """Return the description that the kernels take."""
        return self.forward, self.backward, features, self.parameters, eps, cache
