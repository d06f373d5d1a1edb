"""Group normalization."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib._kernels import group_norm as kernel
from normlib._kernels import group_norm_backward as backward_kernel
from normlib.arrays import Array, as_integer, check_out
from normlib.errors import ParameterError
from normlib.functional import group_norm, group_norm_backward, group_norm_forward
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions, low_level

__all__ = ["GroupNorm"]


class _Cache(NamedTuple):
    x: Array
    mean: Array
    rstd: Array


class GroupNorm(Normalizer):
    r"""Normalize every group of neighbouring features of a row by its own mean and variance.

    .. math::
        y = \frac{x - \mathrm{mean}_g(x)}{\sqrt{\mathrm{var}_g(x) + \epsilon}}
            \odot \mathrm{gain} + \mathrm{bias},

    with the mean and the biased variance over the F / groups features of group g of one row. A
    row's result is the same bits in every batch, and inference and training compute the same.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    groups : int, default 4
        Divides F. Each group should have a few features: one of a single feature becomes its bias.
        With 4, an LSTM's gates are normalized apart from each other.
    gain, bias : bool, default True
        Whether there is a learned gain, a learned bias, each of shape (F,).
    eps : float, default 1e-5
        Added to the variance, inside the square root. 0 is allowed.
    dtype : {"float32", "float64"}, default "float32"
        Dtype of the parameters and of every result.

    Raises
    ------
    ParameterError
        If an argument is outside its range, or groups does not divide F (a ``ValueError``).
    DTypeError
        If `dtype` is neither float32 nor float64 (a ``TypeError``).

    See Also
    --------
    normlib.group_norm : The function, with statistics over further axes, as for images.
    LayerNorm : One group.

    Notes
    -----
    No method changes the state, so all of them may run in many threads at once.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import GroupNorm
    >>> norm = GroupNorm(4, groups=2, eps=0)
    >>> norm(np.array([[1.0, 3.0, 10.0, 30.0]]))
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    name = "group"
    per_sample = True

    groups: int

    def __init__(
        self,
        features: int,
        *,
        groups: int = 4,
        gain: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(features, gain=gain, bias=bias, eps=eps, dtype=dtype)
        self.groups = as_integer("groups", groups, minimum=1)
        if self.features % self.groups:
            raise ParameterError(
                f"groups must divide the {self.features} features; got {self.groups}"
            )

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        x = self.check_input(x, step=step)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        rows = x.reshape(-1, self.features)
        if out is not None:
            check_out(out, x)
            if out.flags.c_contiguous:
                group_norm(rows, self.groups, gain, bias, eps=self.eps, out=out.reshape(rows.shape))
                return out
        y = group_norm(rows, self.groups, gain, bias, eps=self.eps)
        return self.write_out(y.reshape(x.shape), out)

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step, mask=mask)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        rows = x.reshape(-1, self.features)
        y, mean, rstd = group_norm_forward(rows, self.groups, gain, bias, eps=self.eps)
        return y.reshape(x.shape), _Cache(x, mean, rstd)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, mean, rstd = self.check_cache(cache, _Cache)
        dy = self.check_gradient(dy, x.shape)
        rows = x.reshape(-1, self.features)
        gain = self.parameters.get("gain")
        dx, dgain, dbias = group_norm_backward(
            dy.reshape(rows.shape), rows, self.groups, mean, rstd, gain
        )
        return dx.reshape(x.shape), self._gradients(dgain, dbias)

    def row_functions(self, *, training: bool) -> RowFunctions:
        groups = np.array([self.groups], self.dtype)
        return RowFunctions(
            low_level(kernel.row_function, self.dtype),
            low_level(backward_kernel.row_function, self.dtype),
            (*self._row_parameters("gain", "bias"), groups),
            ("gain", "bias", None),
            cache_size=2 * self.groups if training else 0,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}
