"""Normalizers at the sites of a cell: making them, and calling them at each time step.

What a normalizer returns goes to kernels that would run past the end of an array of another shape,
and it may be anybody's. So all of it is checked here, and an error names the site; `Direction` adds
the layer and the time step.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib.arrays import as_dtype
from normlib.errors import ParameterError, PluginError
from normlib.normalizers.base import Normalizer
from normlib.registry import NormalizerFactory, check_arguments
from normlib.rnn.cells import add_to

__all__ = [
    "Backward",
    "Inference",
    "Population",
    "Training",
    "check_factory",
    "create_normalizer",
    "freeze",
]

Array: TypeAlias = npt.NDArray[Any]


def check_factory(factory: NormalizerFactory, config: Mapping[str, Any]) -> None:
    """Refuse what cannot make the normalizers of a network.

    Raises
    ------
    ParameterError
        If the factory does not take bias, dtype and the keys of ``config``.
    PluginError
        If it is an abstract class.
    """
    if inspect.isabstract(factory):
        missing = ", ".join(sorted(getattr(factory, "__abstractmethods__", ())))
        raise PluginError(
            f"norm must be a class with all methods of a normalizer; {factory!r} lacks {missing}"
        )
    try:
        check_arguments(factory, {"bias": False, "dtype": None, **config})
    except ParameterError as error:
        raise ParameterError(
            f"norm must take what is in norm_config, and bias and dtype from the RNN: {error}"
        ) from None


def create_normalizer(
    factory: NormalizerFactory,
    config: Mapping[str, Any],
    dtype: np.dtype[Any],
    features: int,
    *,
    bias: bool,
) -> Normalizer:
    """Make the normalizer of a site; PluginError if it has other features or another dtype."""
    normalizer = factory(features, bias=bias, dtype=dtype, **config)
    made = getattr(normalizer, "features", None), getattr(normalizer, "dtype", None)
    if made != (features, dtype):
        raise PluginError(
            f"norm must make normalizers of {features} features and dtype {dtype}, as it was asked "
            f"to; got a {type(normalizer).__name__} of {made[0]} features and dtype {made[1]}"
        )
    return normalizer


class Inference:
    """Runs the normalizers for inference."""

    def __init__(self, normalizers: Mapping[str, Normalizer], suffix: str, step: int) -> None:
        self.normalizers = normalizers
        self.suffix = suffix
        self.step = step

    def __call__(self, site: str, x: Array) -> Array:
        name = site + self.suffix
        return _checked(self.normalizers[name](x, step=self.step), x, name, "__call__")


class Training:
    """Runs the normalizers for training, and keeps their caches of all time steps."""

    def __init__(self, normalizers: Mapping[str, Normalizer], suffix: str) -> None:
        self.normalizers = normalizers
        self.suffix = suffix
        self.step = 0
        self.caches: dict[str, list[Any]] = {name: [] for name in normalizers}

    def __call__(self, site: str, x: Array) -> Array:
        name = site + self.suffix
        normalizer = self.normalizers[name]
        if len(x) < normalizer.min_rows:
            method, result = "forward_frozen", normalizer.forward_frozen(x, step=self.step)
        else:
            method, result = "forward", normalizer.forward(x, step=self.step)
        y, cache = _pair(result, name, method, "y, cache")
        self.caches[name].append(cache)
        return _checked(y, x, name, method)


class Population:
    """Runs the normalizers for training, by twins that gather statistics, and keeps no caches.

    Where there are too few rows, it takes the running statistics as they were before.
    """

    def __init__(
        self, normalizers: Mapping[str, Normalizer], twins: Mapping[str, Normalizer], suffix: str
    ) -> None:
        self.normalizers = normalizers
        self.twins = twins
        self.suffix = suffix
        self.step = 0

    def __call__(self, site: str, x: Array) -> Array:
        name = site + self.suffix
        normalizer = self.normalizers[name]
        if len(x) < normalizer.min_rows:
            return _checked(normalizer(x, step=self.step), x, name, "__call__")
        result = self.twins[name].forward(x, step=self.step)
        y, _ = _pair(result, name, "forward", "y, cache")
        return _checked(y, x, name, "forward")


class Backward:
    r"""Runs the normalizers' backward, and sums the gradients of their parameters in float64.

    At a step at which all rows are *alike*, of one input and one state, batch statistics have no
    spread, and a normalizer multiplies the differences between the rows of a gradient by up to
    :math:`1/\sqrt{\epsilon}`; over some steps, such as those of the first, black pixels of images,
    they grow past every number. But to sums over the rows, of which alone gradients of parameters
    are made there, they add nothing. So with ``alike`` set, a normalizer of batches gives each row
    the mean of its gradient over the rows.
    """

    def __init__(
        self,
        normalizers: Mapping[str, Normalizer],
        suffix: str,
        caches: Mapping[str, list[Any]],
    ) -> None:
        self.normalizers = normalizers
        self.suffix = suffix
        self.caches = caches
        self.step = 0
        self.alike = False
        self.sums = {
            name: {key: np.zeros(array.shape) for key, array in normalizer.parameters.items()}
            for name, normalizer in normalizers.items()
        }

    def __call__(self, site: str, dy: Array) -> Array:
        name = site + self.suffix
        normalizer = self.normalizers[name]
        result = normalizer.backward(dy, self.caches[name][self.step])
        dx, grads = _pair(result, name, "backward", "dx, grads")
        sums = self.sums[name]
        if not isinstance(grads, Mapping) or grads.keys() != sums.keys():
            got = list(grads) if isinstance(grads, Mapping) else _describe(grads)
            raise PluginError(
                f"backward of the normalizer at {name} must return gradients in a dict with the "
                f"keys of its parameters, {list(sums)}; got {got}"
            )
        for key, total in sums.items():
            gradient = grads[key]
            if (
                not isinstance(gradient, np.ndarray)
                or gradient.shape != total.shape
                or gradient.dtype.kind != "f"
            ):
                raise PluginError(
                    f"backward of the normalizer at {name} must return a gradient of {key} of "
                    f"shape {total.shape} and floating-point; got {_describe(gradient)}"
                )
            add_to(total, gradient)
        dx = _checked(dx, dy, name, "backward")
        if self.alike and not normalizer.per_sample and len(dx) >= normalizer.min_rows:
            with np.errstate(all="ignore"):
                mean = dx.mean(axis=0, dtype=np.float64)
            return as_dtype(np.tile(mean, (len(dx), 1)), dx.dtype)
        return dx

    def grads(self) -> dict[str, Array]:
        """Return the sums by parameter, in its dtype."""
        return {
            f"{name}.{key}": as_dtype(total, self.normalizers[name].parameters[key].dtype)
            for name, sums in self.sums.items()
            for key, total in sums.items()
        }


def freeze(normalizer: Normalizer) -> Normalizer:
    """Return a twin with parameters of its own, so that backward does not see later changes."""
    twin = copy.copy(normalizer)
    twin.parameters = {
        key: array.copy() if isinstance(array, np.ndarray) else array  # the twin will refuse it
        for key, array in normalizer.parameters.items()
    }
    return twin


def _pair(result: object, name: str, method: str, parts: str) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise PluginError(
            f"{method} of the normalizer at {name} must return a tuple ({parts}); "
            f"got {_describe(result)}"
        )
    return result


def _checked(result: object, like: Array, name: str, method: str) -> Array:
    """Return ``result`` as the kernels need it: C-contiguous and aligned."""
    if (
        not isinstance(result, np.ndarray)
        or result.shape != like.shape
        or result.dtype != like.dtype
    ):
        raise PluginError(
            f"{method} of the normalizer at {name} must return an array of shape {like.shape} and "
            f"dtype {like.dtype}, as it was given; got {_describe(result)}"
        )
    if type(result) is np.ndarray and result.flags.carray:
        return result
    return np.array(result, order="C")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)
