"""Layer normalization."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib._kernels import layer_norm as kernel
from normlib._kernels import layer_norm_backward as backward_kernel
from normlib.arrays import Array
from normlib.functional import layer_norm, layer_norm_backward, layer_norm_forward
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions, low_level

__all__ = ["LayerNorm"]


class _Cache(NamedTuple):
    x: Array
    mean: Array
    rstd: Array


class LayerNorm(Normalizer):
    r"""Normalize every row by its own mean and variance.

    .. math::
        y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \epsilon}}
            \odot \mathrm{gain} + \mathrm{bias},

    with the mean and the biased variance over the F features of one row. A row's result is the same
    bits in every batch, and inference and training compute the same.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    gain, bias : bool, default True
        Whether there is a learned gain, a learned bias, each of shape (F,).
    eps : float, default 1e-5
        Added to the variance, inside the square root. 0 is allowed.
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
    normlib.layer_norm : The function, over any axes.
    BatchNorm : Normalize every feature over the batch.

    Notes
    -----
    No method changes the state, so all of them may run in many threads at once.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import LayerNorm
    >>> norm = LayerNorm(4, eps=0)
    >>> x = np.array([[1.0, 1.0, 3.0, 3.0]], dtype=np.float32)
    >>> norm(x)
    array([[-1., -1.,  1.,  1.]], dtype=float32)
    >>> y, cache = norm.forward(x)
    >>> dx, grads = norm.backward(np.ones_like(y), cache)
    >>> grads["bias"]
    array([1., 1., 1., 1.], dtype=float32)
    """

    name = "layer"
    per_sample = True

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        x = self.check_input(x, step=step)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        return layer_norm(x, gain, bias, eps=self.eps, out=out)

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step, mask=mask)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        y, mean, rstd = layer_norm_forward(x, gain, bias, eps=self.eps)
        return y, _Cache(x, mean, rstd)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, mean, rstd = self.check_cache(cache, _Cache)
        dy = self.check_gradient(dy, x.shape)
        dx, dgain, dbias = layer_norm_backward(dy, x, mean, rstd, self.parameters.get("gain"))
        return dx, self._gradients(dgain, dbias)

    def row_functions(self, *, training: bool) -> RowFunctions:
        return RowFunctions(
            low_level(kernel.row_function, self.dtype, kernel.rows_function),
            low_level(backward_kernel.row_function, self.dtype),
            self._row_parameters("gain", "bias"),
            ("gain", "bias"),
            cache_size=2 if training else 0,
        )
