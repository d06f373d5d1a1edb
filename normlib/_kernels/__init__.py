"""The compiled kernels, in the build for the best level of this CPU.

``NORMLIB_CPU=baseline|v3|v4`` forces a level; one that is unknown, not built, or beyond the CPU
is an error. So is a build that was left half done.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

LEVELS = ("baseline", "v3", "v4")
KERNELS = (
    "batch_moments",
    "batch_norm",
    "batch_norm_backward",
    "cells",
    "group_columns",
    "group_columns_backward",
    "group_norm",
    "group_norm_backward",
    "halves",
    "layer_norm",
    "layer_norm_backward",
    "moments",
    "product",
    "recurrent",
    "recurrent_batch",
    "rms_norm",
    "rms_norm_backward",
)

_HOW_TO_BUILD = (
    "Build them with 'pip install -e .' in normlib's source folder, which needs a C compiler, or "
    "install a wheel; and if you are in the source folder, run Python elsewhere"
)


def _is_built(module: str) -> bool:
    try:
        return find_spec(f"{__name__}.{module}") is not None
    except ModuleNotFoundError:  # not even the folder
        return False


if not _is_built("cpu"):
    raise ImportError(f"normlib has no compiled kernels. {_HOW_TO_BUILD}")

from normlib._kernels import cpu  # noqa: E402  # only now is it known to be there


def missing_kernels(level: str) -> list[str]:
    """The kernels that this installation lacks for ``level``."""
    return [name for name in KERNELS if not _is_built(f"{level}.{name}")]


def is_built(level: str) -> bool:
    """Whether this installation has kernels for ``level``, be it not all of them."""
    return len(missing_kernels(level)) < len(KERNELS)


def available_levels() -> list[str]:
    """CPU levels that are built and that this machine can run, the best last."""
    return [level for level in cpu.supported_levels() if is_built(level)]


def choose_level(forced: str | None) -> str:
    """The level to load: the one forced, or the best; ImportError unless all of it is built."""
    available = available_levels()
    if not available:
        raise ImportError(f"normlib has no compiled kernels for this CPU. {_HOW_TO_BUILD}")
    chosen = forced or available[-1]
    if chosen not in LEVELS:
        raise ImportError(
            f"NORMLIB_CPU must be one of {', '.join(LEVELS)}; got {forced!r}. "
            "Unset it to let normlib choose"
        )
    if chosen not in available:
        reason = "is not in this build" if forced in cpu.supported_levels() else "cannot run here"
        raise ImportError(
            f"NORMLIB_CPU={forced} {reason}: this CPU and build offer {', '.join(available)}. "
            "Unset it to let normlib choose"
        )
    missing = missing_kernels(chosen)
    if missing:
        raise ImportError(
            f"the kernels of CPU level {chosen} are not all built: {', '.join(missing)} missing. "
            f"{_HOW_TO_BUILD}"
        )
    return chosen


def load(name: str, level: str) -> ModuleType:
    """The kernel module ``name`` as built for ``level``."""
    return import_module(f"{__name__}.{level}.{name}")


level = choose_level(os.environ.get("NORMLIB_CPU"))

if TYPE_CHECKING:
    from normlib._kernels import (
        batch_moments,
        batch_norm,
        batch_norm_backward,
        cells,
        group_columns,
        group_columns_backward,
        group_norm,
        group_norm_backward,
        halves,
        layer_norm,
        layer_norm_backward,
        moments,
        product,
        recurrent,
        recurrent_batch,
        rms_norm,
        rms_norm_backward,
    )
else:
    batch_moments = load("batch_moments", level)
    batch_norm = load("batch_norm", level)
    batch_norm_backward = load("batch_norm_backward", level)
    cells = load("cells", level)
    group_columns = load("group_columns", level)
    group_columns_backward = load("group_columns_backward", level)
    group_norm = load("group_norm", level)
    group_norm_backward = load("group_norm_backward", level)
    halves = load("halves", level)
    layer_norm = load("layer_norm", level)
    layer_norm_backward = load("layer_norm_backward", level)
    moments = load("moments", level)
    product = load("product", level)
    recurrent = load("recurrent", level)
    recurrent_batch = load("recurrent_batch", level)
    rms_norm = load("rms_norm", level)
    rms_norm_backward = load("rms_norm_backward", level)
