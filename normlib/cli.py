"""The command line: ``normlib`` or ``python -m normlib``."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from normlib.errors import NormlibError
from normlib.info import __version__, config, show_config

__all__ = ["main"]

# By the name under which they are imported.
DEMO_PACKAGES = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "threadpoolctl": "threadpoolctl",
}

EXAMPLES = """\
examples:
  python -m normlib info                     what is installed, and what it runs on
  python -m normlib demo                     watch an LSTM learn, with three normalizers in turn
"""

DEMO_DESCRIPTION = """\
Trains a small recurrent network to read handwritten digits (1797 images of 8 x 8 pixels), once with
each normalizer, all else being equal: weights, batches, learning rate. Shows loss and accuracy as
they come, then a table, and saves two pictures and the figures.
"""

DEMO_EXAMPLES = """\
examples:
  python -m normlib demo                                 pixel by pixel; a minute or two
  python -m normlib demo --by row                        row by row; seconds
  python -m normlib demo --cell gru --hidden 32 --seeds 1
  python -m normlib demo --norm layer --norm yours       any registered normalizer, also a plugin's

Each run starts from a seed, 0, 1, ..., which draws weights, batches, and the fifth of the images
that is kept for testing. The optimizer is Adam; gradients are scaled down to norm 1.
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
        wrong, is raised as ``SystemExit``.)
    """
    parser = argparse.ArgumentParser(
        prog="normlib",
        description="Normalization on the CPU: see what is installed, or watch it at work.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"normlib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(commands)
    _add_demo(commands)
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


# ---- info -----------------------------------------------------------------------------------


def _add_info(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("info", help="version, CPU level, OpenMP, threads and libraries")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0


# ---- demo -----------------------------------------------------------------------------------


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="train a recurrent network on handwritten digits with each normalizer",
        description=DEMO_DESCRIPTION,
        epilog=DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--by",
        choices=["pixel", "row"],
        default="pixel",
        help="what a time step shows: 64 steps of 1 pixel, or 8 of 8 (default: pixel)",
    )
    add(
        "--norm",
        action="append",
        metavar="NAME",
        help="a normalizer by name; repeat for several (default: noop, batch, layer)",
    )
    add(
        "--cell",
        choices=["lstm", "gru", "rnn"],
        default="lstm",
        help="what a time step computes (default: lstm)",
    )
    for name, default, what in (
        ("hidden", 64, "units of the hidden state"),
        ("epochs", 15, "passes over the training images"),
        ("seeds", 3, "runs with each normalizer"),
        ("batch", 64, "images a batch"),
    ):
        add(
            f"--{name}",
            type=_positive_integer,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    add(
        "--learning-rate",
        type=_positive_number,
        default=0.01,
        metavar="X",
        help="of Adam (default: 0.01)",
    )
    add(
        "--target",
        type=_share,
        default=0.7,
        metavar="X",
        help="count the epochs to this test accuracy (default: 0.7)",
    )
    add(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder for pictures and figures (default: demo-output)",
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    try:
        from normlib.demo import Settings, run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in DEMO_PACKAGES:
            raise
        return _fail(
            f"the demo needs {DEMO_PACKAGES[package]}, which is not installed: "
            "pip install 'normlib[demo]'"
        )
    settings = Settings(
        by=options.by,
        cell=options.cell,
        norms=tuple(dict.fromkeys(options.norm or ("noop", "batch", "layer"))),
        hidden=options.hidden,
        epochs=options.epochs,
        batch=options.batch,
        seeds=options.seeds,
        learning_rate=options.learning_rate,
        target=options.target,
        output=options.output,
    )
    try:
        return 0 if run(settings) else 130
    except NormlibError as error:
        return _fail(str(error), code=2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(f"cannot write to {settings.output}: {error.strerror or error}")


def _fail(message: str, code: int = 1) -> int:
    print(f"normlib demo: error: {message}", file=sys.stderr)
    return code


def _positive_integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return value


def _positive_number(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, such as 0.7; got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
