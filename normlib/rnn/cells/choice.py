"""A cell by its name."""

from normlib.errors import ParameterError
from normlib.rnn.cells.base import Cell
from normlib.rnn.cells.gru import GRU, ClassicGRU
from normlib.rnn.cells.lstm import LSTM
from normlib.rnn.cells.vanilla import Vanilla

__all__ = ["CELLS", "create_cell"]

CELLS = ("rnn", "gru", "lstm")
NONLINEARITIES = ("tanh", "relu")


def create_cell(name: str, hidden_size: int, nonlinearity: str, reset_after: bool) -> Cell:
    """Return the cell of that name.

    Parameters
    ----------
    name : {"rnn", "gru", "lstm"}
        Which cell.
    hidden_size : int
        H.
    nonlinearity : {"tanh", "relu"}
        Of the cell "rnn"; the others have none to choose, and take "tanh" alone.
    reset_after : bool
        Of the cell "gru": whether the reset comes after the product with h. The others take True
        alone.

    Raises
    ------
    ParameterError
        If there is no such cell or nonlinearity, or the cell does not have that choice.

    Examples
    --------
    >>> create_cell("gru", 8, "tanh", reset_after=True).gates
    3
    """
    if not isinstance(name, str) or name not in CELLS:
        raise ParameterError(f"cell must be one of {', '.join(map(repr, CELLS))}; got {name!r}")
    if not isinstance(nonlinearity, str) or nonlinearity not in NONLINEARITIES:
        choices = " or ".join(map(repr, NONLINEARITIES))
        raise ParameterError(f"nonlinearity must be {choices}; got {nonlinearity!r}")
    if nonlinearity != "tanh" and name != "rnn":
        raise ParameterError(
            f"nonlinearity belongs to the cell 'rnn'; got {nonlinearity!r} with the cell {name!r}. "
            "Leave it out, or pass cell='rnn'"
        )
    if not reset_after and name != "gru":
        raise ParameterError(
            f"reset_after belongs to the cell 'gru'; got False with the cell {name!r}. Leave it "
            "out, or pass cell='gru'"
        )
    if name == "rnn":
        return Vanilla(hidden_size, relu=nonlinearity == "relu")
    if name == "gru":
        return GRU(hidden_size) if reset_after else ClassicGRU(hidden_size)
    return LSTM(hidden_size)
