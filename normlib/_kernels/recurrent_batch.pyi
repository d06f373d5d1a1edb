"""Types of the compiled module; recurrent_batch.pyx describes the functions."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from normlib._kernels.product import Packed

Array: TypeAlias = npt.NDArray[Any]
Doubles: TypeAlias = npt.NDArray[np.float64]
Site: TypeAlias = tuple[
    int,
    float | None,
    Array | None,
    Array | None,
    Doubles | None,
    Doubles | None,
    Doubles | None,
    Array | None,
    Array | None,
    Array | None,
    Array | None,
    Doubles | None,
    Doubles | None,
    Doubles | None,
]
Steps: TypeAlias = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int, int]

FACTOR_ROWS: int

def forward(
    kind: int,
    inputs: tuple[Packed, ...],
    hidden: tuple[Packed, ...],
    bias: Array,
    sites: tuple[Site, ...],
    steps: Steps,
    x: Array,
    h: Array,
    c: Array | None,
    initial: tuple[Array, ...],
    gates: Array | None,
    extra: Array | None,
    scratch: Array,
    input_rows: Array | None,
    reset_h: Array | None,
    n_threads: int,
) -> None: ...
def backward(
    kind: int,
    hidden: tuple[Packed, ...],
    sites: tuple[Site, ...],
    steps: Steps,
    x: Array,
    h: Array,
    c: Array | None,
    initial: tuple[Array, ...],
    gates: Array | None,
    extra: Array | None,
    scratch: Array,
    d_output: Array,
    dh: Array,
    dc: Array | None,
    d_product: Array | None,
    d_reset_h: Array | None,
    n_threads: int,
) -> None: ...
def window_rows(n_rows: int) -> int: ...
