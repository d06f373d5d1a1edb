"""Gated recurrent units: the reset after the product with h, or before it."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from normlib._kernels import cells as kernels
from normlib.rnn.cells.base import Array, BackwardStep, Cell, ForwardStep, Site, add_to

__all__ = ["GRU", "ClassicGRU"]


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
