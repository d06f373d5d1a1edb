"""The Python code of the README runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[-1][:40])
def test_code_runs(block):
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_there_is_code():
    assert len(BLOCKS) == 2
