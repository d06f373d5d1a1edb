"""The command line: ``normlib`` or ``python -m normlib``. One file a command."""

from normlib.cli.program import main

__all__ = ["main"]
