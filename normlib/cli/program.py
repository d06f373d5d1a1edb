"""The program: which commands there are, and how it ends."""

import argparse
import os
import sys
from collections.abc import Sequence

from normlib.cli import bench, check, demo, info, listing
from normlib.info import __version__

__all__ = ["main"]

DESCRIPTION = """\
Normalization on the CPU: see what is installed and how fast it is, check a normalizer of your own,
or watch them at work.
"""

EXAMPLES = """\
examples:
  normlib info                       what is installed, and what it runs on
  normlib list                       the normalizers there are, plugins included
  normlib check my_package:MyNorm    does it keep the contract? gradients, state, all cells
  normlib bench                      how fast it is here, beside a copy and a matrix product
  normlib demo                       watch an LSTM learn, with three normalizers in turn

Each command says more: normlib check --help. "python -m normlib" is the same as "normlib".
Exit codes: 0, all is well; 1, it is not, or an error; 2, wrong arguments; 130, interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process if not given.

    Returns
    -------
    int
        The exit code: 0, or 1 after an error, or 130 after Ctrl-C. (2, for arguments that are
        wrong, may also be raised as ``SystemExit``.)
    """
    parser = argparse.ArgumentParser(
        prog="normlib",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"normlib {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for module in (info, listing, check, bench, demo):
        module.add(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # such as "normlib info | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    return code
