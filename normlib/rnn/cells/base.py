"""What a recurrent cell computes: one time step forward, and one backward.

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

from normlib._kernels import cells as kernels
from normlib.errors import ParameterError

__all__ = ["CELLS", "GRU", "LSTM", "Cell", "ClassicGRU", "Site", "Vanilla", "add_to", "create_cell"]

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


class Vanilla(Cell):
    r"""The simple recurrent cell, with one normalizer before the nonlinearity.

    .. math:: h_t = f(N_a(W_{ih} x_t + W_{hh} h_{t-1}) + b_{ih} + b_{hh})

    with f tanh, or relu if ``relu`` is set: equation 4 of [1]_. The nonlinearity's derivative is
    taken from h, so a step saves nothing else.

    Notes
    -----
    The supplement of [1]_ swaps the initial values of α (gain) and β (bias). Its section 6 and the
    authors' code start with gain 1 and bias 0, and so does this cell.

    References
    ----------
    .. [1] Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450.
    """

    gates = 1
    blocks = (1,)
    sites = (Site("norm_a", 1),)
    saved: ClassVar[Mapping[str, int]] = {"h": 1}

    def __init__(self, hidden_size: int, relu: bool = False) -> None:
        super().__init__(hidden_size)
        self.relu = relu

    def forward_step(self, step: ForwardStep) -> None:
        total = step.product(step.state[0], 0)
        add_to(total, step.inputs[0])
        a = step.normalize("norm_a", total)
        kernels.vanilla_forward(a, step.bias, step.saved["h"], self.relu, step.n_threads)

    def backward_step(self, step: BackwardStep) -> None:
        (dh,) = step.dstate
        da = np.empty_like(dh)
        kernels.vanilla_backward(dh, step.saved["h"], da, self.relu, step.n_threads)
        kernels.add_column_sums(da, step.d_bias, step.n_threads)
        step.d_inputs[0][...] = step.d_hidden[0][...] = step.denormalize("norm_a", da)
        dh[...] = step.product(step.d_hidden[0], 0)


class LSTM(Cell):
    r"""Long short-term memory, gates in the order i, f, g, o.

    .. math::
        a_t &= N_{ih}(W_{ih} x_t) + b_{ih} + N_{hh}(W_{hh} h_{t-1}) + b_{hh} \\
        c_t &= σ(f) ⊙ c_{t-1} + σ(i) ⊙ \tanh(g) \\
        h_t &= σ(o) ⊙ \tanh(N_c(c_t))

    N_ih and N_hh normalize all 4H values together; N_c has a bias of its own: equations 20 to 22
    of [1]_. A step saves the four gates, c and tanh(N_c(c)).

    Notes
    -----
    Implementations disagree; this cell follows the equations.

    - The carried c is *not* normalized. TensorFlow Addons' ``LayerNormLSTMCell`` and PyTorch's
      benchmark cell carry N_c(c).
    - The supplement of [1]_ swaps the initial values of α (gain) and β (bias). Its section 6 and
      the authors' code start with gain 1 and bias 0.
    - The authors' code adds the bias b twice, once with each normalized product. Here that is the
      same as two biases, which PyTorch has too.

    References
    ----------
    .. [1] Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450.
    """

    gates = 4
    blocks = (4,)
    sites = (Site("norm_ih", 4), Site("norm_hh", 4), Site("norm_c", 1, bias=True))
    carries = ("h", "c")
    saved: ClassVar[Mapping[str, int]] = {"h": 1, "c": 1, "gates": 4, "tanh_c": 1}

    def forward_step(self, step: ForwardStep) -> None:
        h, c = step.state
        a_ih = step.normalize("norm_ih", step.inputs[0])
        a_hh = step.normalize("norm_hh", step.product(h, 0))
        kernels.lstm_gates_forward(
            a_ih, a_hh, step.bias, c, step.saved["gates"], step.saved["c"], step.n_threads
        )
        normed_c = step.normalize("norm_c", step.saved["c"])
        kernels.lstm_output_forward(
            step.saved["gates"], normed_c, step.saved["tanh_c"], step.saved["h"], step.n_threads
        )

    def backward_step(self, step: BackwardStep) -> None:
        dh, dc = step.dstate
        gates = step.saved["gates"]
        da = np.empty_like(gates)
        d_normed_c = np.empty_like(dh)
        kernels.lstm_output_backward(
            dh, gates, step.saved["tanh_c"], d_normed_c, da, step.n_threads
        )
        dc_output = step.denormalize("norm_c", d_normed_c)
        kernels.lstm_gates_backward(dc, dc_output, gates, step.state[1], da, dc, step.n_threads)
        kernels.add_column_sums(da, step.d_bias, step.n_threads)
        step.d_inputs[0][...] = step.denormalize("norm_ih", da)
        step.d_hidden[0][...] = step.denormalize("norm_hh", da)
        dh[...] = step.product(step.d_hidden[0], 0)


class GRU(Cell):
    r"""Gated recurrent unit, gates in the order r, z, n, the reset after the product.

    .. math::
        (r, z) &= σ(N_{ih}(W_{rz} x_t) + b_{ih} + N_{hh}(U_{rz} h_{t-1}) + b_{hh}) \\
        n &= \tanh(N_{in}(W_n x_t) + b_{in} + r ⊙ (N_{hn}(U_n h_{t-1}) + b_{hn})) \\
        h_t &= (1 - z) ⊙ n + z ⊙ h_{t-1}

    N_ih and N_hh normalize 2H values together, N_in and N_hn H: the form of [1]_'s supplement
    and of PyTorch. A step saves the three gates and N_hn(U_n h) + b_hn.

    Notes
    -----
    The supplement of [1]_ writes z the other way round, h = (1 - z) ⊙ h + z ⊙ n: the same function,
    with z's gain and bias negated. It also swaps the initial values of α (gain) and β (bias).

    References
    ----------
    .. [1] Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450.
    """

    gates = 3
    blocks = (2, 1)
    sites = (Site("norm_ih", 2), Site("norm_hh", 2), Site("norm_in", 1), Site("norm_hn", 1))
    saved: ClassVar[Mapping[str, int]] = {"h": 1, "gates": 3, "hidden_n": 1}

    def merge_biases(self, bias_ih: Array, bias_hh: Array) -> Array:
        """Return (b_r, b_z, b_in, b_hn), (4H,): of n, the two biases stay apart."""
        n = 2 * self.hidden_size
        both = super().merge_biases(bias_ih[:n], bias_hh[:n])
        return np.concatenate((both, bias_ih[n:], bias_hh[n:]))

    def split_bias_gradient(self, d_bias: Array) -> tuple[Array, Array]:
        """Return the gradients of ``bias_ih`` and ``bias_hh`` from that of the merged bias."""
        d_rz, d_in, d_hn = np.split(d_bias, (2 * self.hidden_size, 3 * self.hidden_size))
        return np.concatenate((d_rz, d_in)), np.concatenate((d_rz, d_hn))

    def forward_step(self, step: ForwardStep) -> None:
        (h,) = step.state
        a_ih = step.normalize("norm_ih", step.inputs[0])
        a_hh = step.normalize("norm_hh", step.product(h, 0))
        a_in = step.normalize("norm_in", step.inputs[1])
        a_hn = step.normalize("norm_hn", step.product(h, 1))
        kernels.gru_forward(
            a_ih, a_hh, a_in, a_hn, step.bias, h,
            step.saved["gates"], step.saved["hidden_n"], step.saved["h"], step.n_threads,
        )  # fmt: skip

    def backward_step(self, step: BackwardStep) -> None:
        (dh,) = step.dstate
        rows, size = dh.shape
        da_rz = np.empty((rows, 2 * size), dh.dtype)
        da_n = np.empty_like(dh)
        d_hidden_n = np.empty_like(dh)
        kernels.gru_backward(
            dh, step.saved["gates"], step.saved["hidden_n"], step.state[0],
            da_rz, da_n, d_hidden_n, dh, step.n_threads,
        )  # fmt: skip
        kernels.add_column_sums(da_rz, step.d_bias[: 2 * size], step.n_threads)
        kernels.add_column_sums(da_n, step.d_bias[2 * size : 3 * size], step.n_threads)
        kernels.add_column_sums(d_hidden_n, step.d_bias[3 * size :], step.n_threads)
        step.d_inputs[0][...] = step.denormalize("norm_ih", da_rz)
        step.d_inputs[1][...] = step.denormalize("norm_in", da_n)
        step.d_hidden[0][...] = step.denormalize("norm_hh", da_rz)
        step.d_hidden[1][...] = step.denormalize("norm_hn", d_hidden_n)
        add_to(dh, step.product(step.d_hidden[0], 0))
        add_to(dh, step.product(step.d_hidden[1], 1))


class ClassicGRU(GRU):
    r"""Gated recurrent unit as first published, the reset before the product.

    As `GRU`, but

    .. math:: n = \tanh(N_{in}(W_n x_t) + b_{in} + N_{hn}(U_n (r ⊙ h_{t-1})) + b_{hn})

    as in Cho et al. [1]_. A step saves the three gates.

    References
    ----------
    .. [1] Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
       Machine Translation", arXiv:1406.1078.
    """

    saved: ClassVar[Mapping[str, int]] = {"h": 1, "gates": 3}

    merge_biases = Cell.merge_biases
    split_bias_gradient = Cell.split_bias_gradient

    def hidden_inputs(self, h: Array, gates: Array | None) -> tuple[Array, ...]:
        """Return h, and h after the reset."""
        assert gates is not None
        with np.errstate(all="ignore"):
            return h, gates[:, : self.hidden_size] * h

    def forward_step(self, step: ForwardStep) -> None:
        (h,) = step.state
        gates = step.saved["gates"]
        a_ih = step.normalize("norm_ih", step.inputs[0])
        a_hh = step.normalize("norm_hh", step.product(h, 0))
        reset_h = np.empty_like(h)
        kernels.gru_reset_forward(a_ih, a_hh, step.bias, h, gates, reset_h, step.n_threads)
        a_in = step.normalize("norm_in", step.inputs[1])
        a_hn = step.normalize("norm_hn", step.product(reset_h, 1))
        kernels.gru_candidate_forward(
            a_in, a_hn, step.bias, h, gates, step.saved["h"], step.n_threads
        )

    def backward_step(self, step: BackwardStep) -> None:
        (dh,) = step.dstate
        (h,) = step.state
        gates = step.saved["gates"]
        rows, size = dh.shape
        da_rz = np.empty((rows, 2 * size), dh.dtype)
        da_n = np.empty_like(dh)
        kernels.gru_candidate_backward(dh, gates, h, da_rz, da_n, dh, step.n_threads)
        step.d_inputs[1][...] = step.denormalize("norm_in", da_n)
        step.d_hidden[1][...] = step.denormalize("norm_hn", da_n)
        d_reset_h = step.product(step.d_hidden[1], 1)
        kernels.gru_reset_backward(d_reset_h, gates, h, da_rz, dh, step.n_threads)
        kernels.add_column_sums(da_rz, step.d_bias[: 2 * size], step.n_threads)
        kernels.add_column_sums(da_n, step.d_bias[2 * size :], step.n_threads)
        step.d_inputs[0][...] = step.denormalize("norm_ih", da_rz)
        step.d_hidden[0][...] = step.denormalize("norm_hh", da_rz)
        add_to(dh, step.product(step.d_hidden[0], 0))


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
