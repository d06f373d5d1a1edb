"""Types of the compiled module; cells.pyx describes the functions."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

def lstm_gates_forward(
    a_ih: Array, a_hh: Array, bias: Array, c: Array, gates: Array, c_out: Array, n_threads: int
) -> None: ...
def lstm_output_forward(
    gates: Array, normed_c: Array, tanh_c: Array, h: Array, n_threads: int
) -> None: ...
def lstm_output_backward(
    dh: Array, gates: Array, tanh_c: Array, d_normed_c: Array, da: Array, n_threads: int
) -> None: ...
def lstm_gates_backward(
    dc: Array,
    dc_output: Array,
    gates: Array,
    c: Array,
    da: Array,
    dc_before: Array,
    n_threads: int,
) -> None: ...
def gru_forward(
    a_ih: Array,
    a_hh: Array,
    a_in: Array,
    a_hn: Array,
    bias: Array,
    h: Array,
    gates: Array,
    hidden_n: Array,
    h_out: Array,
    n_threads: int,
) -> None: ...
def gru_backward(
    dh: Array,
    gates: Array,
    hidden_n: Array,
    h: Array,
    da_rz: Array,
    da_n: Array,
    d_hidden_n: Array,
    dh_before: Array,
    n_threads: int,
) -> None: ...
def gru_reset_forward(
    a_ih: Array, a_hh: Array, bias: Array, h: Array, gates: Array, reset_h: Array, n_threads: int
) -> None: ...
def gru_candidate_forward(
    a_in: Array, a_hn: Array, bias: Array, h: Array, gates: Array, h_out: Array, n_threads: int
) -> None: ...
def gru_candidate_backward(
    dh: Array,
    gates: Array,
    h: Array,
    da_rz: Array,
    da_n: Array,
    dh_before: Array,
    n_threads: int,
) -> None: ...
def gru_reset_backward(
    d_reset_h: Array, gates: Array, h: Array, da_rz: Array, dh: Array, n_threads: int
) -> None: ...
def vanilla_forward(a: Array, bias: Array, h: Array, relu: bool, n_threads: int) -> None: ...
def vanilla_backward(dh: Array, h: Array, da: Array, relu: bool, n_threads: int) -> None: ...
def add_column_sums(a: Array, sums: npt.NDArray[np.float64], n_threads: int) -> None: ...
def exp(x: Array, out: Array, n_threads: int) -> None: ...
def sigmoid(x: Array, out: Array, n_threads: int) -> None: ...
def tanh(x: Array, out: Array, n_threads: int) -> None: ...
