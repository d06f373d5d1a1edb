"""How much memory of outputs normlib keeps when they die, for outputs to come.

New memory is slow: the system clears each page of it at its first touch, which takes as long as
normalizing what is on it. So memory of outputs of 128 KB and more is kept: at most 16 blocks, and
at most 512 MB or a sixteenth of the machine's memory, whichever is less. ``NORMLIB_KEEP_MB`` sets
another limit; 0 keeps nothing. Memory goes there only when no array and no view refers to it.
"""

import os
from pathlib import Path

from normlib._kernels import buffers
from normlib.arrays import as_integer
from normlib.errors import ParameterError

__all__ = ["get_limit", "set_limit"]

_MB = 1 << 20
_MAX = 1 << 60


def _machine() -> int:
    """Bytes of memory that the machine has, or the control group grants."""
    try:
        n = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 32
    try:
        return min(n, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return n


def _default() -> int:
    text = os.environ.get("NORMLIB_KEEP_MB", "").strip()
    if not text:
        return min(512 * _MB, _machine() // 16)
    if not text.isdecimal():
        raise ParameterError(f"NORMLIB_KEEP_MB must be a whole number of megabytes; got {text!r}")
    return min(int(text) * _MB, _MAX)


def get_limit() -> int:
    """The most bytes of dead outputs that are kept."""
    return buffers.get_limit()


def set_limit(n: int | None) -> None:
    """Keep at most `n` bytes of dead outputs; what is beyond goes back to the system at once.

    Parameters
    ----------
    n : int or None
        0 keeps nothing; None goes back to the default.

    Raises
    ------
    ParameterError
        If `n` is negative or not an integer.

    Examples
    --------
    >>> from normlib import memory
    >>> memory.set_limit(0)
    >>> memory.get_limit()
    0
    >>> memory.set_limit(None)
    """
    buffers.set_limit(_default() if n is None else as_integer("n", n, minimum=0, maximum=_MAX))


set_limit(None)
