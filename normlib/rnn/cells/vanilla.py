"""The simple recurrent cell."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from normlib._kernels import cells as kernels
from normlib.rnn.cells.base import BackwardStep, Cell, ForwardStep, Site, add_to

__all__ = ["Vanilla"]


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
