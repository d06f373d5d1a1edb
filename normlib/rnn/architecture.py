"""The settings of a network that decide its weights and what is computed with them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlib.arrays import as_integer, check_dtype
from normlib.errors import ParameterError
from normlib.rnn.arguments import check_flag
from normlib.rnn.cells import Cell, create_cell

__all__ = ["Architecture"]


@dataclass
class Architecture:
    """The checked arguments of `normlib.RNN`, save for normalizers and random numbers.

    It holds no arrays, however large the network. Two are equal if all settings are.

    Raises
    ------
    ParameterError, DTypeError
        If a setting is outside its range, or of another type.

    Examples
    --------
    >>> settings = Architecture(3, 4, "rnn", 1, False, "tanh", True, np.dtype(np.float32))
    >>> dict(settings.shapes())["weight_ih_l0"]
    (4, 3)
    """

    input_size: int
    hidden_size: int
    cell: str
    num_layers: int
    bidirectional: bool
    nonlinearity: str
    reset_after: bool
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        self.input_size = as_integer("input_size", self.input_size, minimum=1)
        self.hidden_size = as_integer("hidden_size", self.hidden_size, minimum=1)
        self.num_layers = as_integer("num_layers", self.num_layers, minimum=1)
        self.bidirectional = check_flag("bidirectional", self.bidirectional)
        self.reset_after = check_flag("reset_after", self.reset_after)
        self.dtype = check_dtype(self.dtype)
        rows = self.create_cell().gates * self.hidden_size * self.num_directions * self.num_layers
        columns = max(self.input_size, self.output_size) + self.hidden_size
        if rows * columns * self.dtype.itemsize > sys.maxsize:
            raise ParameterError(
                "input_size, hidden_size and num_layers must give weights that memory can address; "
                f"got {self.input_size}, {self.hidden_size} and {self.num_layers}. Make them "
                "smaller"
            )

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Features of y: directions · H."""
        return self.num_directions * self.hidden_size

    def create_cell(self) -> Cell:
        """Return the cell of all layers."""
        return create_cell(self.cell, self.hidden_size, self.nonlinearity, self.reset_after)

    def directions(self) -> Iterator[tuple[str, int]]:
        """Yield suffix and input size of each layer's directions, in order."""
        for layer in range(self.num_layers):
            input_size = self.input_size if layer == 0 else self.output_size
            for suffix in ("", "_reverse")[: self.num_directions]:
                yield f"_l{layer}{suffix}", input_size

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of each weight and bias, in order."""
        cell = self.create_cell()
        for suffix, input_size in self.directions():
            for name, shape in cell.shapes(input_size).items():
                yield name + suffix, shape
