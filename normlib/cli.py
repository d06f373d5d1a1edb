"""The command line: ``normlib`` or ``python -m normlib``."""

import argparse
import json
from collections.abc import Sequence

from normlib.info import __version__, config, show_config

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="normlib",
        description="Normalization on the CPU: see what is installed, or watch it at work.",
    )
    parser.add_argument("--version", action="version", version=f"normlib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="version, CPU level, OpenMP, threads and libraries")
    info.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0
