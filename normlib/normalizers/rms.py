"""Root-mean-square normalization."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib._kernels import rms_norm as kernel
from normlib._kernels import rms_norm_backward as backward_kernel
from normlib.arrays import Array
from normlib.functional import rms_norm, rms_norm_backward, rms_norm_forward
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions, low_level

__all__ = ["RMSNorm"]


class _Cache(NamedTuple):
    x: Array
    rstd: Array


class RMSNorm(Normalizer):
    r"""Divide every row by its own root mean square.

    .. math::
        y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \odot \mathrm{gain},

    with the mean over the F features of one row. A row's result is the same bits in every batch,
    and inference and training compute the same.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    gain : bool, default True
        Whether there is a learned gain, of shape (F,).
    bias : bool, default False
        Checked, and otherwise ignored: there is none, so that what is zero stays zero. An RNN asks
        for one in its LSTM's cell, and can have this normalizer there all the same.
    eps : float, default 1e-5
        Added to the mean square, inside the square root. 0 is allowed.
    dtype : {"float32", "float64"}, default "float32"
        Dtype of the parameters and of every result.

    Raises
    ------
    ParameterError
        If an argument is outside its range (a ``ValueError``).
    DTypeError
        If `dtype` is neither float32 nor float64 (a ``TypeError``).

    See Also
    --------
    normlib.rms_norm : The function, over any axes.
    LayerNorm : Subtracts the mean, too.

    Notes
    -----
    No method changes the state, so all of them may run in many threads at once.

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import RMSNorm
    >>> norm = RMSNorm(2, eps=0)
    >>> norm(np.array([[1.0, 7.0]]))
    array([[0.2, 1.4]], dtype=float32)
    >>> list(norm.parameters)
    ['gain']
    """

    name = "rms"
    per_sample = True

    def __init__(
        self,
        features: int,
        *,
        gain: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(features, gain=gain, bias=bias, eps=eps, dtype=dtype)
        self.parameters.pop("bias", None)

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        x = self.check_input(x, step=step)
        return rms_norm(x, self.parameters.get("gain"), eps=self.eps, out=out)

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step, mask=mask)
        y, rstd = rms_norm_forward(x, self.parameters.get("gain"), eps=self.eps)
        return y, _Cache(x, rstd)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, rstd = self.check_cache(cache, _Cache)
        dy = self.check_gradient(dy, x.shape)
        dx, dgain = rms_norm_backward(dy, x, rstd, self.parameters.get("gain"))
        return dx, {} if dgain is None else {"gain": dgain}

    def row_functions(self, *, training: bool) -> RowFunctions:
        return RowFunctions(
            low_level(kernel.row_function, self.dtype, kernel.rows_function),
            low_level(backward_kernel.row_function, self.dtype),
            self._row_parameters("gain"),
            ("gain",),
            cache_size=1 if training else 0,
        )
