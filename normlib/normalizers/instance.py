"""Instance normalization."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib._kernels import group_norm as kernel
from normlib._kernels import group_norm_backward as backward_kernel
from normlib.arrays import Array
from normlib.functional import instance_norm, instance_norm_backward, instance_norm_forward
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions, low_level

__all__ = ["InstanceNorm"]


class _Cache(NamedTuple):
    x: Array
    mean: Array | None  # None where there was nothing to normalize
    rstd: Array | None


class InstanceNorm(Normalizer):
    r"""Normalize every channel of a sample by its own mean and variance.

    .. math::
        y = \frac{x - \mathrm{mean}_{nc}(x)}{\sqrt{\mathrm{var}_{nc}(x) + \epsilon}}
            \, \mathrm{gain}_c + \mathrm{bias}_c,

    for x (N, ..., C), with the mean and the biased variance over the axes between the first and the
    last. A sample's result is the same bits in every batch, and inference and training compute the
    same.

    Where a sample has *one value per channel*, as in x (N, C) and so at every time step of an RNN,
    there is nothing to normalize by: its variance is zero, and the formula would erase x. There
    gain and bias alone are applied. (PyTorch refuses such input, and Keras erases it. To normalize
    a row over its features, take `LayerNorm`.)

    Parameters
    ----------
    features : int
        C, the size of the last axis of every input.
    gain, bias : bool, default True
        Whether there is a learned gain, a learned bias, each of shape (C,). PyTorch's default is
        neither.
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
    normlib.instance_norm : The function, with channels on any axis.
    LayerNorm : Normalize every row over its features.

    Notes
    -----
    A mask does not change the result: masked positions count. No method changes the state, so all
    of them may run in many threads at once.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import InstanceNorm
    >>> norm = InstanceNorm(2, eps=0)
    >>> norm(np.array([[[1.0, 10.0], [3.0, 30.0]]]))
    array([[[-1., -1.],
            [ 1.,  1.]]], dtype=float32)
    >>> norm(np.array([[5.0, 7.0]]))
    array([[5., 7.]], dtype=float32)
    """

    name = "instance"
    per_sample = True

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        x = self.check_input(x, step=step)
        if _single(x):
            return self.write_out(self.affine(x), out)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        return instance_norm(x, gain, bias, channel_axis=-1, eps=self.eps, out=out)

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step, mask=mask)
        if _single(x):
            return self.affine(x), _Cache(x, None, None)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        y, mean, rstd = instance_norm_forward(x, gain, bias, channel_axis=-1, eps=self.eps)
        return y, _Cache(x, mean, rstd)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, mean, rstd = self.check_cache(cache, _Cache)
        if mean is None or rstd is None:
            return self.affine_backward(dy, x)
        dy = self.check_gradient(dy, x.shape)
        gain = self.parameters.get("gain")
        dx, dgain, dbias = instance_norm_backward(dy, x, mean, rstd, gain, channel_axis=-1)
        return dx, self._gradients(dgain, dbias)

    def row_functions(self, *, training: bool) -> RowFunctions:
        # A row has one value per channel.
        return RowFunctions(
            low_level(kernel.affine_function, self.dtype),
            low_level(backward_kernel.affine_function, self.dtype),
            self._row_parameters("gain", "bias"),
            ("gain", "bias"),
        )


def _single(x: Array) -> bool:
    """Whether each sample has one value per channel."""
    return math.prod(x.shape[1:-1]) == 1
