"""What is checked, and how a check fails."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from normlib.arrays import Array
from normlib.normalizers import Normalizer
from normlib.registry import NormalizerFactory


class RuleError(AssertionError):
    """One rule of the contract is broken."""


class Subject(NamedTuple):
    make: NormalizerFactory
    features: int

    def new(self, dtype: str = "float64", **config: Any) -> Normalizer:
        """Make a normalizer whose parameters are away from 1 and 0, where mistakes hide."""
        norm = self.make(self.features, dtype=dtype, **config)
        rng = np.random.default_rng(1)
        for array in norm.parameters.values():
            array += rng.uniform(-0.3, 0.3, array.shape).astype(array.dtype)
        return norm

    def trained(self, dtype: str = "float64", **config: Any) -> Normalizer:
        """Make a normalizer whose buffers, if it has any, are away from their initial values."""
        norm = self.new(dtype, **config)
        for seed in (11, 12):
            norm.forward(self.rows(6, dtype=dtype, seed=seed))
        return norm

    def rows(self, *shape: int, dtype: str = "float64", seed: int = 0) -> Array:
        """Make random values of shape (*shape, F)."""
        rng = np.random.default_rng(seed)
        return rng.normal(0.5, 1.5, (*shape, self.features)).astype(dtype)


def fail(message: str) -> NoReturn:
    raise RuleError(message)


def expect(condition: object, message: str) -> None:
    if not condition:
        fail(message)


def expect_raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except error:
        return
    except Exception as other:
        fail(f"{what} must raise {error.__name__}; it raised {describe(other)}")
    fail(f"{what} must raise {error.__name__}; it was accepted")


def describe(error: BaseException) -> str:
    """Name the error and the innermost line, NumPy's own aside, where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if "numpy" not in Path(frame.filename).parts][-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{type(error).__name__}: {error} ({place})"


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def close(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True))


def fingerprint(norm: Normalizer, x: Array) -> dict[str, bytes]:
    """Tell states apart, by what is saved and by what inference makes of it."""
    arrays = {**norm.state_dict(), "inference": norm(x)}
    return {key: array.tobytes() for key, array in arrays.items()}
