"""What a contestant is."""

from typing import Any

import numpy as np

from benchmarks.cases import Array, Case, Inputs
from benchmarks.timing import Run

__all__ = ["Peer", "Run"]


class Peer:
    """A library. It takes part in the operations for which it has a method of the same name.

    Such a method gets an `Inputs`, prepares all that a user would prepare once, and returns the
    call to be timed, whose result has all outputs of the operation. A method ``copy`` copies x, as
    fast as the library can: the roofline.

    Parameters
    ----------
    n_threads : int
        As many as the library may use.
    """

    dtypes: tuple[str, ...] = ("float32", "float64")
    images = True  # takes NCHW, not only rows of features

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def prepare(self, case: Case, inputs: Inputs) -> Run | None:
        """The call to be timed; None where the library does not take part."""
        if case.dtype not in self.dtypes or (len(case.shape) > 2 and not self.images):
            return None
        return self.method(case.op, inputs)

    def method(self, name: str, inputs: Inputs) -> Run | None:
        """The call for one operation, or None."""
        prepare = getattr(self, name, None)
        return None if prepare is None else prepare(inputs)

    def arrays(self, result: Any) -> list[Array]:
        """A call's result as NumPy arrays."""
        results = result if isinstance(result, list | tuple) else [result]
        return [np.asarray(array) for array in results]
