"""What the commands share: kinds of arguments, parsers, tables, and how they fail."""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__all__ = [
    "Commands",
    "add_command",
    "add_json",
    "apart_from_json",
    "fail",
    "positive_integer",
    "positive_number",
    "print_table",
    "share",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for a program to read")


def apart_from_json(options: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """Return a context for other people's code: with ``--json``, what it prints goes to stderr."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def fail(command: str, message: str, code: int = 1) -> int:
    """Print why a command failed; return the exit code."""
    print(f"normlib {command}: error: {message}", file=sys.stderr)
    return code


def print_table(rows: Sequence[Sequence[Any]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns, those at the places in `right` aligned to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def positive_integer(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return value


def positive_number(text: str) -> float:
    """Read a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text}")
    return value


def share(text: str) -> float:
    """Read a number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, such as 0.7; got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
