"""``normlib demo``: watch a recurrent network learn."""

import argparse
from pathlib import Path

from normlib.cli.arguments import (
    Commands,
    add_command,
    fail,
    positive_integer,
    positive_number,
    share,
)
from normlib.errors import NormlibError

__all__ = ["add"]

# By the name under which they are imported.
PACKAGES = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "threadpoolctl": "threadpoolctl",
}

DESCRIPTION = """\
Trains a small recurrent network to read handwritten digits (1797 images of 8 x 8 pixels), once with
each normalizer, all else being equal: weights, batches, learning rate. Shows loss and accuracy as
they come, then a table, and saves two pictures and the figures.
"""

EXAMPLES = """\
examples:
  normlib demo                                 pixel by pixel; a minute or two
  normlib demo --by row                        row by row; seconds
  normlib demo --cell gru --hidden 32 --seeds 1
  normlib demo --norm layer --norm yours       any registered normalizer, also a plugin's

Each run starts from a seed, 0, 1, ..., which draws weights, batches, and the fifth of the images
that is kept for testing. The optimizer is Adam; gradients are scaled down to norm 1.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        _run,
        summary="train a recurrent network on handwritten digits with each normalizer",
        description=DESCRIPTION,
        examples=EXAMPLES,
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
            type=positive_integer,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    add(
        "--learning-rate",
        type=positive_number,
        default=0.01,
        metavar="X",
        help="of Adam (default: 0.01)",
    )
    add(
        "--target",
        type=share,
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


def _run(options: argparse.Namespace) -> int:
    try:
        from normlib.demo.experiment import Settings, run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        return fail(
            "demo",
            f"the demo needs {PACKAGES[package]}, which is not installed: "
            "pip install 'normlib[demo]'",
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
        return fail("demo", str(error), code=2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return fail("demo", f"cannot write to {settings.output}: {error.strerror or error}")
