"""Types of the compiled module; recurrent.pyx describes the functions."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = npt.NDArray[np.intp]
Site: TypeAlias = tuple[
    object, object, int, tuple[Array | None, ...], float, npt.NDArray[np.float64] | None
]

KINDS: dict[str, int]

class Plan:
    weights: tuple[Array, Array]
    bias: Array
    def __init__(
        self,
        kind: int,
        weight_ih: Array,
        weight_hh: Array,
        bias_ih: Array,
        bias_hh: Array,
        bias: Array,
        backward: bool,
    ) -> None: ...
    def fits(
        self, weight_ih: Array, weight_hh: Array, bias_ih: Array, bias_hh: Array, n_threads: int
    ) -> bool: ...
    def forward(
        self,
        x: Array,
        starts: Places,
        counts: Places,
        first: int,
        stop: int,
        first_step: int,
        h_initial: Array,
        c_initial: Array | None,
        sites: tuple[Site, ...],
        inputs: Array,
        products: Array,
        gates: Array | None,
        h: Array,
        c: Array | None,
        extra: Array | None,
        reset_h: Array | None,
        scratch: Array,
        training: bool,
        keep_products: bool,
        keep_inputs: bool,
        block: int,
        columns: bool,
        n_threads: int,
    ) -> None: ...
    def step(
        self, x: object, state: object, sites: tuple[Site, ...], number: int, most_rows: int
    ) -> tuple[Array, Any] | None: ...
    def backward(
        self,
        starts: Places,
        counts: Places,
        first: int,
        stop: int,
        h_initial: Array,
        c_initial: Array | None,
        sites: tuple[Site, ...],
        inputs: Array,
        products: Array,
        gates: Array | None,
        h: Array,
        c: Array | None,
        extra: Array | None,
        dh: Array,
        dc: Array | None,
        d_output: Array,
        d_inputs: Array,
        d_products: Array,
        d_gates: Array | None,
        d_state: Array | None,
        d_reset_h: Array | None,
        gradients: npt.NDArray[np.float64],
        places: tuple[Any, ...],
        scratch: Array,
        block: int,
        columns: bool,
        n_threads: int,
    ) -> None: ...

def window_rows(n_rows: int) -> int: ...
