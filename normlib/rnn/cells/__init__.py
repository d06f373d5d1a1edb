"""What recurrent cells compute: one time step forward, and one backward; one file a cell."""

from normlib.rnn.cells.base import BackwardStep, Cell, ForwardStep, Site, add_to
from normlib.rnn.cells.choice import CELLS, create_cell
from normlib.rnn.cells.gru import GRU, ClassicGRU
from normlib.rnn.cells.lstm import LSTM
from normlib.rnn.cells.vanilla import Vanilla

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "BackwardStep",
    "Cell",
    "ClassicGRU",
    "ForwardStep",
    "Site",
    "Vanilla",
    "add_to",
    "create_cell",
]
