"""The code of the README and of the site runs as it stands, and nothing public is left out."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import normlib
import normlib.diagnostics
from normlib import registry
from normlib.cli import main
from normlib.normalizers.signatures import signature_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page.relative_to(DOCS).parts[0] not in ("_build", "auto_gallery")
]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def write_files(page):
    """Write the blocks of C into the files that their first lines name."""
    for code in blocks(page, "c"):
        Path(re.match(r"/\* (\w+\.[ch]) \*/\n", code)[1]).write_text(code, encoding="utf-8")


def run(page, *codes, monkeypatch):
    # A module, so that what it defines can be pickled; and a registry that forgets it.
    module = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, "documentation", module)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for code in codes:
        exec(compile(code, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize(
    "block", blocks(README, "python"), ids=lambda block: block.splitlines()[-1][:40]
)
def test_code_of_the_readme(block, monkeypatch):
    run(README, block, monkeypatch=monkeypatch)


def test_there_is_code():
    assert len(blocks(README, "python")) >= 2


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=lambda page: str(page.relative_to(DOCS)),
)
def test_code_of_a_page(page, monkeypatch, tmp_path):
    """The blocks of a page, one after the other; those that need PyTorch only where it is."""
    monkeypatch.chdir(tmp_path)
    write_files(page)
    codes = blocks(page, "python")
    if importlib.util.find_spec("torch") is None:
        codes = [code for code in codes if "torch" not in code]
    run(page, *codes, monkeypatch=monkeypatch)


@pytest.mark.parametrize("number", ["float", "double"])
def test_row_functions_are_declared_as_they_are_called(number, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_files(DOCS / "write_a_normalizer.md")
    declared = re.findall(r"(void \w+\([^)]*\));", Path("row_functions.h").read_text())
    declared += re.findall(r"void \w+\([^)]*\)(?=;)", normlib.RowFunctions.__doc__)
    assert len(declared) == 4
    for declaration in declared:
        result, method, arguments = re.fullmatch(
            r"(void) (\w+)(.*)", declaration, re.DOTALL
        ).groups()
        signature = re.sub(r"\bT\b", number, " ".join(f"{result} {arguments}".split()))
        dtype = np.dtype(np.float32 if number == "float" else np.float64)
        assert signature == signature_of(method, dtype)


def test_settings_of_a_package_are_those_of_the_example():
    package = ROOT / "tests" / "example_plugin"
    (settings,) = blocks(DOCS / "write_a_normalizer.md", "toml")
    assert settings in (package / "pyproject.toml").read_text(encoding="utf-8")


COMMANDS = [
    line.partition("#")[0].split()[1:]
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("normlib ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_of_the_pages(command, capsys):
    assert main(command) == 0


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.rst"))
    listed = set(re.findall(r"^   (?:\w+\.)?(\w+)$", text, re.MULTILINE))
    for module in (normlib, normlib.diagnostics, normlib.errors):
        public = {
            name
            for name in module.__all__
            if not name.startswith("__") and not isinstance(getattr(module, name), ModuleType)
        }
        assert public <= listed, f"not in docs/api: {sorted(public - listed)}"


def test_every_script_of_the_gallery_is_drawn_and_described():
    for script in (DOCS / "gallery").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        assert f"results/{script.stem}.png" in text
        assert f"python docs/gallery/{script.name}" in text
