"""``normlib info``: what is installed, and what it runs on."""

import argparse
import json

from normlib.cli.arguments import Commands, add_command, add_json
from normlib.info import config, show_config

__all__ = ["add"]

DESCRIPTION = """\
Prints the version, the CPU and the level of instructions in use, OpenMP, threads, and the versions
of Python, NumPy with its BLAS, and SciPy. A bug report should have it.
"""

EXAMPLES = """\
examples:
  normlib info
  normlib info --json
  NORMLIB_CPU=v3 normlib info        force a level: baseline, v3, v4
  OMP_NUM_THREADS=1 normlib info     fewer threads
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "info",
        _run,
        summary="version, CPU level, OpenMP, threads and libraries",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0
