"""What a contestant is."""

from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.operation import Array
from benchmarks.timing import Run

__all__ = ["Peer", "Run"]


class Peer:
    """A library. It takes part in the operations for which it has a method of the same name.

    Such a method gets `Inputs`, prepares all that a user would prepare once, and returns the
    call to be timed, whose result has all outputs of the operation; for recurrent networks it is
    ``recurrent``, and gets `RecurrentInputs`. Two more run the rooflines: ``copy`` copies x, and
    ``product`` multiplies two square matrices, as fast as the library can.

    Parameters
    ----------
    n_threads : int
        As many as the library may use.
    """

    dtypes: tuple[str, ...] = ("float32", "float64")
    images = True  # takes NCHW, not only rows of features

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads

    def prepare(self, case: Case, inputs: Any) -> Run | None:
        """The call to be timed; None where the library does not take part."""
        if case.dtype not in self.dtypes or (len(case.shape) > 2 and not self.images):
            return None
        return self.method(case.operation.method or case.op, inputs)

    def method(self, name: str, inputs: Any) -> Run | None:
        """The call for one operation, or None."""
        prepare = getattr(self, name, None)
        return None if prepare is None else prepare(inputs)

    def arrays(self, result: Any) -> list[Array]:
        """A call's result as NumPy arrays."""
        if isinstance(result, dict):
            result = [result[name] for name in sorted(result)]
        if isinstance(result, list | tuple):
            return [array for part in result for array in self.arrays(part)]
        return [np.asarray(result)]
