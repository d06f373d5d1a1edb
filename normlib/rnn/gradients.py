"""The gradients of a direction's weights: products over all packed rows of what went in and out."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels import product as kernels
from normlib.arrays import as_dtype
from normlib.rnn.cells import Cell

__all__ = ["WeightGradients"]

Array: TypeAlias = npt.NDArray[Any]


class WeightGradients:
    """Sums of the gradients of ``weight_ih``, (GH, I), and ``weight_hh``, (GH, H).

    Their order depends on the rows alone, not on the number of threads.
    """

    def __init__(self, cell: Cell, weight_ih: Array, weight_hh: Array) -> None:
        self.cell = cell
        self.weight_ih = np.zeros_like(weight_ih)
        self.weight_hh = np.zeros_like(weight_hh)

    def add(
        self,
        rows: Array,
        before: Iterable[tuple[slice, Array]],
        gates: Array | None,
        d_inputs: Sequence[Array],
        d_products: Sequence[Array],
        n_threads: int,
    ) -> None:
        """Add what comes of some packed rows.

        Parameters
        ----------
        rows : (rows, I) array
            The input.
        before : iterable of (slice, array)
            The states before, and of which of the rows they are.
        gates : (rows, gates · H) array, or None
            What the cell saved, if its `Cell.hidden_inputs` asks for it.
        d_inputs, d_products : sequences of (rows, block · H) arrays
            The gradients of the products with x and with h, of each block of the weight.
        n_threads : int
            Threads that the kernels may use.
        """
        for d, out in zip(d_inputs, self.cell.cut(self.weight_ih), strict=True):
            kernels.add_gradient(d, rows, out, n_threads)
        outs = self.cell.cut(self.weight_hh)
        for here, h in before:
            inputs = self.cell.hidden_inputs(h, None if gates is None else gates[here])
            for d, hidden, out in zip(d_products, inputs, outs, strict=True):
                kernels.add_gradient(d[here], hidden, out, n_threads)

    def named(self, suffix: str, d_bias: npt.NDArray[np.float64]) -> dict[str, Array]:
        """Return the gradients of weights and biases by name; ``d_bias`` is of the merged bias."""
        d_bias_ih, d_bias_hh = self.cell.split_bias_gradient(as_dtype(d_bias, self.weight_hh.dtype))
        return {
            f"weight_ih{suffix}": self.weight_ih,
            f"weight_hh{suffix}": self.weight_hh,
            f"bias_ih{suffix}": d_bias_ih,
            f"bias_hh{suffix}": d_bias_hh,
        }
