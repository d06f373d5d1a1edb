"""Gain and bias of normalizers, and the checks of what their methods are given."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from normlib.arrays import (
    Array,
    as_dtype,
    as_float,
    as_integer,
    check_mask,
    check_out,
    required_like,
)
from normlib.errors import ParameterError, ShapeError
from normlib.normalizers.state import Stateful

__all__ = ["Affine"]

CacheT = TypeVar("CacheT")


class Affine(Stateful):
    """The base of `Normalizer`, for use by its subclasses."""

    def check_input(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> Array:
        """Check the arguments of a call; return `x` as a C-contiguous array of this dtype.

        The result may share memory with `x`: do not write to it. Being contiguous, its rows are
        summed by NumPy in an order that does not depend on how many there are.

        Raises
        ------
        ShapeError, DTypeError, ParameterError
            As ``forward``.
        """
        array = as_float(x, "x", half=True)
        if array.ndim == 0 or array.shape[-1] != self.features:
            raise ShapeError(
                f"x must have shape (..., {self.features}), as this {type(self).__name__} has "
                f"{self.features} features; got {array.shape}"
            )
        as_integer("step", step, minimum=0)
        check_mask(mask, array.shape[:-1])
        return as_dtype(array, self.dtype)

    def write_out(self, y: Array, out: Array | None) -> Array:
        """Return `y`, copied to `out` if that is given.

        Raises
        ------
        ShapeError
            If `out` has another shape than `y`.
        DTypeError
            If `out` is not an array of this normalizer's dtype.
        """
        if out is None:
            return y
        check_out(out, y)
        out[...] = y
        return out

    def affine(self, xhat: Array) -> Array:
        """Return ``gain * xhat + bias``, without the parameters that are not there.

        Always a new array.

        Parameters
        ----------
        xhat : ndarray, shape (..., F)
            The normalized values.
        """
        gain, bias = self._parameter("gain"), self._parameter("bias")
        with np.errstate(all="ignore"):  # NaN and Inf are as silent as in compiled normalizers
            y = xhat.copy() if gain is None else xhat * gain
            if bias is not None:
                y += bias
        return y

    def affine_backward(self, dy: npt.ArrayLike, xhat: Array) -> tuple[Array, dict[str, Array]]:
        """Differentiate `affine`.

        The sums over rows run in float64. Always new arrays.

        Parameters
        ----------
        dy : array_like, shape (..., F)
            The gradient with respect to what ``affine`` returned.
        xhat : ndarray, shape (..., F)
            What ``affine`` was called with.

        Returns
        -------
        dxhat : ndarray, shape (..., F)
            ``dy * gain``.
        grads : dict of str to ndarray
            The gradients of those of gain and bias that are there: the sums over all rows of
            ``dy * xhat`` and of ``dy``.

        Raises
        ------
        ShapeError
            If `dy` does not have the shape of `xhat`.
        DTypeError
            If `dy` is not of floats.
        """
        dy = self.check_gradient(dy, xhat.shape)
        rows = tuple(range(dy.ndim - 1))
        gain = self._parameter("gain")
        sums: dict[str, Any] = {}
        with np.errstate(all="ignore"):
            if gain is not None:
                sums["gain"] = np.sum(dy * xhat, axis=rows, dtype=np.float64)
            if "bias" in self.parameters:
                sums["bias"] = np.sum(dy, axis=rows, dtype=np.float64)
            dxhat = dy.copy() if gain is None else dy * gain
        return dxhat, {key: as_dtype(total, self.dtype) for key, total in sums.items()}

    def _gradients(self, dgain: Array | None, dbias: Array) -> dict[str, Array]:
        """Name what the backward functions of arrays return; dbias counts if there is a bias."""
        grads = {} if dgain is None else {"gain": dgain}
        if "bias" in self.parameters:
            grads["bias"] = dbias
        return grads

    def check_gradient(self, dy: npt.ArrayLike, shape: tuple[int, ...]) -> Array:
        """Check the gradient of an output of that shape; return it as `check_input` does.

        Raises
        ------
        ShapeError
            If `dy` has another shape.
        DTypeError
            If `dy` is not of floats.
        """
        return required_like(dy, "dy", shape, self.dtype, "y")

    def check_cache(self, cache: Any, kind: type[CacheT]) -> CacheT:
        """Check what `backward` was given; return it.

        Parameters
        ----------
        cache : object
            What it was given.
        kind : class
            Of every cache that this class makes. The normalized array is its ``x``, or the cache
            itself has the ``shape`` and ``dtype`` of that.

        Raises
        ------
        ParameterError
            If `cache` is of another class, or of a normalizer of another dtype.
        ShapeError
            If it is of a normalizer with another number of features.
        """
        own = f"cache must be what forward of this {type(self).__name__} returned beside y"
        if not isinstance(cache, kind):
            raise ParameterError(f"{own}; got an object of {type(cache)}")
        x: Any = getattr(cache, "x", cache)
        if x.dtype != self.dtype:
            raise ParameterError(f"{own}, of dtype {self.dtype}; got one of {x.dtype}")
        if x.shape[-1] != self.features:
            raise ShapeError(f"{own}, of {self.features} features; got one of {x.shape[-1]}")
        return cache

    def _row_parameters(self, *names: str) -> tuple[Array | None, ...]:
        """Return parameters of shape (F,) as `row_functions` offers them; refuse what is not."""
        for name in names:
            self._parameter(name)
        return tuple(self.parameters.get(name) for name in names)
