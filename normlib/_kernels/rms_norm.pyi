from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

def rms_norm_forward(
    x: NDArray[Any],
    residual: NDArray[Any] | None,
    gain: NDArray[Any] | None,
    eps: float,
    y: NDArray[Any],
    total: NDArray[Any] | None,
    rstd: NDArray[np.float64] | None,
    n_threads: int,
) -> None: ...
@overload
def rms_norm_plain(
    x: ArrayLike,
    gain: ArrayLike | None,
    eps: float,
    out: NDArray[Any] | None,
    statistics: Literal[False],
    threads_for: Callable[[int], int],
) -> NDArray[Any] | None: ...
@overload
def rms_norm_plain(
    x: ArrayLike,
    gain: ArrayLike | None,
    eps: float,
    out: NDArray[Any] | None,
    statistics: Literal[True],
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[np.float64]] | None: ...
@overload
def add_rms_norm_plain(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None,
    eps: float,
    out: tuple[NDArray[Any], NDArray[Any]] | None,
    statistics: Literal[False],
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any]] | None: ...
@overload
def add_rms_norm_plain(
    x: ArrayLike,
    residual: ArrayLike,
    gain: ArrayLike | None,
    eps: float,
    out: tuple[NDArray[Any], NDArray[Any]] | None,
    statistics: Literal[True],
    threads_for: Callable[[int], int],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]] | None: ...
def row_function(single: bool) -> object: ...
def rows_function(single: bool) -> object: ...
