"""What every recurrent cell has: one time step forward, and one backward.

Design
------
A cell knows nothing of time, layers or directions. It is a table of facts (gates, products,
normalization sites, what backward needs) and two functions, `Cell.forward_step` and
`Cell.backward_step`, over the rows of one time step. It reaches the outside by two callables:

- ``product(a, block)`` multiplies by one block of a weight. A cell's weight is cut along its gates
  into ``blocks``, one for each site that normalizes a product, so that every product arrives in an
  array of its own.
- ``normalize(site, x)`` runs the normalizer of a site. In training it keeps what its backward
  needs; ``denormalize(site, dy)`` is that backward.

All else is elementwise and runs in `normlib._kernels.cells`. Arrays are C-contiguous and of the
model's dtype; N is the number of rows of the step, H the hidden size.
"""

import abc
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["BackwardStep", "Cell", "ForwardStep", "Site", "add_to"]

Array: TypeAlias = npt.NDArray[Any]
Product: TypeAlias = Callable[[Array, int], Array]
Normalize: TypeAlias = Callable[[str, Array], Array]


def add_to(total: Array, part: npt.ArrayLike) -> None:
    """Add in place. NaN, Inf and overflow are silent, as they are in kernels."""
    with np.errstate(all="ignore"):
        total += part


@dataclass(frozen=True)
class Site:
    """A place in a cell where a normalizer runs.

    ``gates`` gives its features as a multiple of the hidden size. ``bias`` tells whether the
    normalizer has a bias of its own; where it has none, the cell's bias follows it.
    """

    name: str
    gates: int
    bias: bool = False


@dataclass(slots=True)
class ForwardStep:
    """What `Cell.forward_step` works on.

    Attributes
    ----------
    inputs : tuple of (N, block · H) arrays
        The products of x with the blocks of ``weight_ih``.
    state : tuple of (N, H) arrays
        The state before the step, one array for each of ``carries``. Those after h may be the same
        memory in ``saved``: the step then overwrites the state that it reads.
    bias : array
        The result of `Cell.merge_biases`.
    product, normalize : callable
        As described at the head of this module; products are with ``weight_hh`` transposed.
    saved : dict of arrays
        Written: the arrays that `Cell.saved` names, the new state among them.
    n_threads : int
        Threads that the kernels may use.
    """

    inputs: tuple[Array, ...]
    state: tuple[Array, ...]
    bias: Array
    product: Product
    normalize: Normalize
    saved: Mapping[str, Array]
    n_threads: int


@dataclass(slots=True)
class BackwardStep:
    """What `Cell.backward_step` works on.

    Attributes
    ----------
    dstate : tuple of (N, H) arrays
        Read: the gradient of the state after the step, h's including that of the output.
        Overwritten: the gradient of the state before the step.
    state, saved
        As `Cell.forward_step` read and left them.
    product, denormalize : callable
        As described at the head of this module; products are with ``weight_hh``.
    d_inputs, d_hidden : tuples of (N, block · H) arrays
        Written: the gradients of the products with x and with h.
    d_bias : array of float64
        The gradient of the merged bias is added to it.
    n_threads : int
        Threads that the kernels may use.
    """

    dstate: tuple[Array, ...]
    state: tuple[Array, ...]
    product: Product
    denormalize: Normalize
    saved: Mapping[str, Array]
    d_inputs: tuple[Array, ...]
    d_hidden: tuple[Array, ...]
    d_bias: Array
    n_threads: int


class Cell(abc.ABC):
    """One time step of a recurrent layer.

    Parameters
    ----------
    hidden_size : int
        H, the features of the state h.

    Attributes
    ----------
    gates : int
        Rows of a weight, as a multiple of H.
    blocks : tuple of int
        The cuts of a weight along its gates: one product each.
    sites : tuple of Site
        Where normalizers run.
    carries : tuple of str
        The arrays, (N, H), that a step hands to the next one. The first is h, the output.
    saved : dict of str to int
        The arrays that a step writes, with their features as a multiple of H. They hold what
        ``backward_step`` needs; the arrays named in ``carries`` are among them.
    """

    gates: ClassVar[int]
    blocks: ClassVar[tuple[int, ...]]
    sites: ClassVar[tuple[Site, ...]]
    carries: ClassVar[tuple[str, ...]] = ("h",)
    saved: ClassVar[Mapping[str, int]]

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        ends = [end * hidden_size for end in itertools.accumulate(self.blocks)]
        self._pieces = [slice(*piece) for piece in itertools.pairwise([0, *ends])]

    def shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights and biases by name, for x of that many features."""
        rows = self.gates * self.hidden_size
        return {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }

    def cut(self, weight: Array) -> list[Array]:
        """Views of the blocks of ``weight``, (gates · H, K), in order."""
        return [weight[piece] for piece in self._pieces]

    def cut_columns(self, products: Array) -> list[Array]:
        """Views of the blocks of ``products``, (N, gates · H), in order."""
        return [products[:, piece] for piece in self._pieces]

    def merge_biases(self, bias_ih: Array, bias_hh: Array) -> Array:
        """Return the biases as the kernels add them: those that always meet are one."""
        with np.errstate(all="ignore"):
            return bias_ih + bias_hh

    def split_bias_gradient(self, d_bias: Array) -> tuple[Array, Array]:
        """Return the gradients of ``bias_ih`` and ``bias_hh`` from that of the merged bias."""
        return d_bias, d_bias.copy()

    def hidden_inputs(self, h: Array, gates: Array | None) -> tuple[Array, ...]:
        """Return what each block of ``weight_hh`` was multiplied by, given the states before."""
        return (h,) * len(self.blocks)

    @abc.abstractmethod
    def forward_step(self, step: ForwardStep) -> None:
        """Compute one time step."""

    @abc.abstractmethod
    def backward_step(self, step: BackwardStep) -> None:
        """Differentiate one time step."""
