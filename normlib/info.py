"""What this installation is made of, and what it runs on."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from normlib import _kernels, memory
from normlib._kernels import cpu
from normlib.threads import get_num_threads

__all__ = ["__version__", "config", "show_config"]

__version__ = importlib.metadata.version("normlib")


def _blas() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _cpu() -> str:
    """The CPU's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def config() -> dict[str, Any]:
    """Return what `show_config` prints, as a dict of plain values."""
    version = cpu.openmp()
    return {
        "normlib": __version__,
        "cpu": _cpu(),
        "cpu_level": _kernels.level,
        "cpu_levels_available": _kernels.available_levels(),
        "openmp": f"{version // 100}.{version % 100:02}" if version else None,
        "threads": get_num_threads(),
        "kept_memory": memory.get_limit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": _blas(),
    }


def show_config() -> None:
    """Print the version, the CPU level in use and those available, OpenMP, threads and libraries.

    Examples
    --------
    >>> import normlib
    >>> normlib.show_config()  # doctest: +ELLIPSIS
    normlib ...
    """
    values = config()
    levels = ", ".join(values["cpu_levels_available"])
    openmp = values["openmp"] or "none: this build runs on one thread"
    for name, value in [
        ("normlib", values["normlib"]),
        ("CPU", values["cpu"]),
        ("CPU level", f"{values['cpu_level']} (available: {levels})"),
        ("OpenMP", openmp),
        ("threads", values["threads"]),
        ("memory", f"keeps at most {values['kept_memory'] >> 20} MB of outputs that are gone"),
        ("Python", values["python"]),
        ("NumPy", f"{values['numpy']} (BLAS: {values['blas']})"),
        ("SciPy", values["scipy"]),
    ]:
        print(f"{name:<10} {value}")
