"""Third-party distributions, installed for one test: files on sys.path, as pip leaves them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from normlib import registry


class Installer:
    """Write distributions into a folder that is on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, distribution: str, entry_points: str, **modules: str) -> None:
        """Install modules, given by name and source, and the entry points of normlib's group."""
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        info.joinpath("entry_points.txt").write_text(
            f"[normlib.normalizers]\n{dedent(entry_points)}\n"
        )
        for name, source in modules.items():
            self.folder.joinpath(f"{name}.py").write_text(dedent(source))
            self.modules.append(name)

    @property
    def imported(self) -> set[str]:
        """Which of the modules have been imported."""
        return sys.modules.keys() & set(self.modules)


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Give an `Installer` and, afterwards, take back what it and the test did."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    installer = Installer(tmp_path)
    yield installer
    for name in installer.imported:
        del sys.modules[name]
