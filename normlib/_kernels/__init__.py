"""The compiled kernels, in the build for the best level of this CPU.

``NORMLIB_CPU=baseline|v3|v4`` forces a level; one that is unknown, not built, or beyond the CPU
is an error.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from normlib._kernels import cpu

LEVELS = ("baseline", "v3", "v4")


def is_built(level: str) -> bool:
    """Whether this installation has the kernels for ``level``."""
    try:
        return find_spec(f"{__name__}.{level}.layer_norm") is not None
    except ModuleNotFoundError:
        return False


def available_levels() -> list[str]:
    """CPU levels that are built and that this machine can run, the best last."""
    return [level for level in cpu.supported_levels() if is_built(level)]


def choose_level(forced: str | None) -> str:
    """The level to load: the one forced, or the best."""
    available = available_levels()
    if not forced:
        return available[-1]
    if forced not in LEVELS:
        raise ImportError(
            f"NORMLIB_CPU must be one of {', '.join(LEVELS)}; got {forced!r}. "
            "Unset it to let normlib choose"
        )
    if forced not in available:
        reason = "is not in this build" if forced in cpu.supported_levels() else "cannot run here"
        raise ImportError(
            f"NORMLIB_CPU={forced} {reason}: this CPU and build offer {', '.join(available)}. "
            "Unset it to let normlib choose"
        )
    return forced


def load(name: str, level: str) -> ModuleType:
    """The kernel module ``name`` as built for ``level``."""
    return import_module(f"{__name__}.{level}.{name}")


level = choose_level(os.environ.get("NORMLIB_CPU"))

if TYPE_CHECKING:
    from normlib._kernels import batch_norm, cells, layer_norm, moments, product
else:
    batch_norm = load("batch_norm", level)
    cells = load("cells", level)
    layer_norm = load("layer_norm", level)
    moments = load("moments", level)
    product = load("product", level)
