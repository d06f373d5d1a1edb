"""The entry points by which installed distributions offer normalizers; none is imported here."""

import functools
import re
import sys
from importlib import metadata

__all__ = ["entry_points", "forget", "named", "origin"]

GROUP = "normlib.normalizers"


def named(name: str) -> list[metadata.EntryPoint]:
    """Those of that name."""
    return [point for point in entry_points() if point.name == name]


def entry_points() -> tuple[metadata.EntryPoint, ...]:
    """All, as they were found when `sys.path` was first what it is now, or after `forget`."""
    return _scan(tuple(sys.path))


def forget() -> None:
    """Look again next time: a distribution may have been installed since."""
    _scan.cache_clear()


@functools.lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """Find the entry points of the group on `path`, the first distribution of a name winning.

    `importlib.metadata.entry_points` would do, but raises if any installed distribution at all has
    an unreadable file.
    """
    found: dict[str, list[metadata.EntryPoint]] = {}
    for distribution in metadata.distributions(path=list(path)):
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            points = list(distribution.entry_points.select(group=GROUP))
            key = re.sub(r"[-_.]+", "-", distribution.name).lower()
        except Exception:  # whatever is wrong with it, it is not a plugin that can be named
            continue
        found.setdefault(key, points)
    return tuple(point for points in found.values() for point in points)


def origin(point: metadata.EntryPoint) -> str:
    """What it names, and the distribution that it is of, for messages."""
    distribution = point.dist.name if point.dist is not None else "unknown"
    return f"{point.value} (distribution {distribution})"
