"""Running statistics of a whole training set, taken with the weights as they are."""

from collections.abc import Callable, Mapping
from typing import Self, TypeAlias

import numpy.typing as npt

from normlib.errors import ParameterError
from normlib.normalizers.base import Normalizer
from normlib.rnn.arguments import Array, State
from normlib.rnn.checkpoint import restored_on_error

__all__ = ["Population"]

Twins: TypeAlias = Mapping[str, Normalizer]
Gather: TypeAlias = Callable[
    [npt.ArrayLike, State | None, npt.ArrayLike | None, Twins], tuple[Array, State]
]


class Population:
    """A pass over a training set that gathers running statistics; `RNN.population` makes it.

    Within its ``with`` block `update` gathers; at the end of the block the normalizers take what
    was gathered, unless an exception leaves it.

    Parameters
    ----------
    normalizers : mapping of str to Normalizer
        Those of the network, by site.
    gather : callable
        ``gather(x, state, lengths, twins)`` runs the network as training does, with the twins in
        place of the normalizers, and returns y and the final state.

    Attributes
    ----------
    num_batches : int
        Batches seen.
    """

    def __init__(self, normalizers: Twins, gather: Gather) -> None:
        self.num_batches = 0
        self._normalizers = normalizers
        self._gather = gather
        self._twins: Twins | None = None

    def __enter__(self) -> Self:
        self.num_batches = 0
        self._twins = {name: one.population_twin() for name, one in self._normalizers.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        twins, self._twins = self._twins, None
        if kind is not None or twins is None:
            return
        if not self.num_batches:
            raise ParameterError(
                "a population pass must be given at least one batch by update before its block "
                "ends; got none"
            )
        with restored_on_error(self._normalizers.values()):
            for name, normalizer in self._normalizers.items():
                normalizer.take_population(twins[name])

    def update(
        self,
        x: npt.ArrayLike,
        state: State | None = None,
        lengths: npt.ArrayLike | None = None,
    ) -> tuple[Array, State]:
        """Add a batch: normalize by its own statistics, as training does, and gather them.

        Parameters
        ----------
        x, state, lengths
            As of `RNN.forward`.

        Returns
        -------
        y, state
            What `RNN.forward` returns, without the cache, which is not made.

        Raises
        ------
        ShapeError, DTypeError, ParameterError
            As `RNN.forward`, and outside the block. After any error the batch counts as not seen.
        """
        twins = self._twins
        if twins is None:
            raise ParameterError(
                "update must be called within the block of `with rnn.population() as population:`; "
                "got a call before or after it"
            )
        with restored_on_error([twin for twin in twins.values() if twin.buffers]):
            result = self._gather(x, state, lengths, twins)
        self.num_batches += 1
        return result
