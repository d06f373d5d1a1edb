"""The Python code of the README runs as it stands."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from normlib import registry

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_code_runs(block, monkeypatch):
    # A module, so that what it defines can be pickled; and a registry that forgets it.
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(compile(block, str(README), "exec"), module.__dict__)


def test_there_is_code():
    assert len(BLOCKS) == 3
