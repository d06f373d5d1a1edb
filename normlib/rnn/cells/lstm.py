"""Long short-term memory."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from normlib._kernels import cells as kernels
from normlib.rnn.cells.base import BackwardStep, Cell, ForwardStep, Site

__all__ = ["LSTM"]


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
