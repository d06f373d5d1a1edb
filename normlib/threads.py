"""How many threads the kernels use.

The default is what the process may use: its CPU affinity, the CPU quota of its control group and
``OMP_NUM_THREADS``, whichever is least. The count never changes a result's bits.
"""

import math
import operator
import os
import threading
from pathlib import Path

from normlib._kernels import cpu
from normlib.errors import ParameterError

__all__ = ["get_num_threads", "set_num_threads", "threads_for"]

# Elements below which a second thread costs more than it brings (benchmarks.thresholds).
MIN_ELEMENTS = 32768

_initial_openmp = cpu.openmp_max_threads()


class _State(threading.local):
    """What OpenMP was last set to in this Python thread, as far as normlib knows."""

    openmp = _initial_openmp


_state = _State()
_requested: int | None = None
_forked = False


def _after_fork() -> None:
    # The child has none of the parent's OpenMP threads, and libgomp waits for them forever.
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _cgroup_quota() -> int | None:
    """CPUs that the control group grants, rounded up; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0:
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def _default() -> int:
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    n = len(affinity) or os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota is not None:
        n = min(n, quota)
    # A list gives the counts of nested parallel regions; the first is ours.
    environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if environment.isdecimal() and int(environment) > 0:
        n = min(n, int(environment))
    return n


_default_threads = _default()


def get_num_threads() -> int:
    """Threads that a large enough call uses now.

    A limit set through OpenMP, such as ``threadpoolctl.threadpool_limits``, shows in it. In a child
    made by ``fork``, and in a build without OpenMP, it is 1.

    Examples
    --------
    >>> import normlib
    >>> normlib.get_num_threads() >= 1
    True
    """
    if _forked or not cpu.openmp():
        return 1
    n = _default_threads if _requested is None else _requested
    openmp = cpu.openmp_max_threads()
    return n if openmp == _state.openmp else min(n, openmp)


def set_num_threads(n: int | None) -> None:
    """Set how many threads a large enough call may use, in every Python thread.

    Parameters
    ----------
    n : int or None
        At least 1; may be more than the process has CPUs. None goes back to the default.

    Raises
    ------
    ParameterError
        If `n` is below 1 or not an integer.

    Examples
    --------
    >>> import normlib
    >>> normlib.set_num_threads(1)
    >>> normlib.get_num_threads()
    1
    >>> normlib.set_num_threads(None)
    """
    global _requested
    if n is not None:
        if isinstance(n, bool):
            raise ParameterError(f"n must be an integer of at least 1, or None; got {n!r}")
        try:
            n = operator.index(n)
        except TypeError:
            raise ParameterError(
                f"n must be an integer of at least 1, or None; got {n!r}"
            ) from None
        if not 1 <= n <= 1024:
            raise ParameterError(f"n must be from 1 to 1024, or None for the default; got {n}")
    _requested = n
    if not _forked:
        # Ends a limit that OpenMP had in this thread: the latest word counts.
        cpu.set_openmp_max_threads(_initial_openmp if n is None else n)
        _state.openmp = _initial_openmp if n is None else n


def threads_for(n_elements: int) -> int:
    """Threads for a call that touches that many elements: 1 where more would not gain."""
    if n_elements < 2 * MIN_ELEMENTS:
        return 1
    return min(get_num_threads(), n_elements // MIN_ELEMENTS)
