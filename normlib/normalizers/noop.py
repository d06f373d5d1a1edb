"""No normalization, behind the same interface."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions

__all__ = ["NoOp"]


class _Cache(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class NoOp(Normalizer):
    """Return the input unchanged: y = x.

    With it, a model that asks for a normalizer is the plain model, with nothing to learn in its
    place.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    gain, bias, eps
        Checked, and otherwise ignored, so that it can stand wherever another normalizer can.
    dtype : {"float32", "float64"}, default "float32"
        Dtype of every result.

    Notes
    -----
    There is no state: everything may run in many threads at once.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import NoOp
    >>> norm = NoOp(2)
    >>> norm(np.array([[1.0, 7.0]]))
    array([[1., 7.]], dtype=float32)
    >>> norm.parameters
    {}
    """

    name = "noop"
    per_sample = True

    def __init__(
        self,
        features: int,
        *,
        gain: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(features, gain=gain, bias=bias, eps=eps, dtype=dtype)
        self.parameters = {}

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        y = self.check_input(x, step=step, mask=mask).copy()
        return y, _Cache(y.shape, y.dtype)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        shape, _ = self.check_cache(cache, _Cache)
        return self.check_gradient(dy, shape).copy(), {}

    def row_functions(self, *, training: bool) -> RowFunctions:
        return RowFunctions(None, None)
