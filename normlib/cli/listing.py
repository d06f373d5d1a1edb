"""``normlib list``: the normalizers there are."""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import cast

from normlib import registry
from normlib.cli.arguments import Commands, add_command, add_json, apart_from_json, print_table
from normlib.errors import NormlibError
from normlib.normalizers import Normalizer

__all__ = ["Row", "add", "rows"]

DESCRIPTION = """\
Lists the normalizers by the names that normlib.create and normlib.RNN(norm=...) know, with what
offers each. Plugins, found through the entry-point group "normlib.normalizers", are imported.

per sample  whether a row's result depends on that row alone: the same in any batch, in training
            and in inference
compiled    whether it offers compiled functions for a row, by which a recurrent network runs it
            without Python (batch: in inference); a class that overrides a method has none
"""

EXAMPLES = """\
examples:
  normlib list
  normlib list --json | jq -r '.[] | select(.per_sample) | .name'
"""


@dataclass(frozen=True)
class Row:
    """A normalizer; ``error`` tells why it cannot be used, and is None if it can."""

    name: str
    source: str
    per_sample: bool | None
    compiled: bool | None
    error: str | None = None


def rows() -> list[Row]:
    """List the normalizers registered and installed, by name."""
    return [_row(name) for name in registry.available()]


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "list",
        _run,
        summary="the normalizers there are, and where they come from",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    with apart_from_json(options):
        found = rows()
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return 0
    table = [("name", "source", "per sample", "compiled")]
    table += [(row.name, row.source, _said(row.per_sample), _said(row.compiled)) for row in found]
    print_table(table)
    for row in found:
        if row.error:
            print(f"\n{row.name} cannot be used: {row.error}")
    return 0


def _row(name: str) -> Row:
    source = ", ".join(registry.sources(name))
    try:
        factory = registry.resolve(name)
    except NormlibError as error:
        return Row(name, source, None, None, str(error))
    cls = cast(type[Normalizer], factory)  # a name means a class
    compiled = cls.row_functions is not Normalizer.row_functions
    per_sample: object = cls.per_sample  # or a property: it depends on the settings
    return Row(name, source, per_sample if isinstance(per_sample, bool) else None, compiled)


def _said(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"
