"""``normlib check``: does a normalizer keep the contract?"""

import argparse
import importlib
import json
import os
import sys
from typing import Any

from normlib.cli.arguments import (
    Commands,
    add_command,
    add_json,
    apart_from_json,
    fail,
    positive_integer,
)
from normlib.errors import NormlibError
from normlib.registry import NormalizerLike, resolve

__all__ = ["add"]

DESCRIPTION = """\
Runs the conformance kit, normlib.testing.check_normalizer, on a normalizer: a class or a factory
given as MODULE:NAME, or a name of "normlib list". Some twenty checks: shapes, dtypes, memory
layouts, masks, errors, gradients against central differences, state, pickling, and the use in each
recurrent cell. A check that fails says what was expected, what came, and what to do.
"""

EXAMPLES = """\
examples:
  normlib check my_package.norms:MyNorm
  normlib check my_norm.py:MyNorm              a file
  normlib check layer                          a registered name
  normlib check my_package:MyNorm --features 6 --skip gradients

Modules are also looked for in the current folder. The exit code is 0 if all checks pass, 1 if one
fails, and 2 if there is no such normalizer.
"""


class _NotFoundError(Exception):
    pass


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "check",
        _run,
        summary="run the conformance kit on a normalizer",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("normalizer", metavar="MODULE:NAME", help="a class, factory or name")
    parser.add_argument(
        "--features",
        type=positive_integer,
        default=8,
        metavar="N",
        help="the size of the last axis (default: 8)",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="CHECK",
        help="leave a check out; repeat for several",
    )
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    from normlib import testing

    unknown = [name for name in options.skip if name not in testing.CHECKS]
    if unknown:
        return fail(
            "check",
            f"argument --skip: unknown check {unknown[0]!r}. There are: "
            f"{', '.join(testing.CHECKS)}",
            code=2,
        )
    try:
        with apart_from_json(options):
            subject = _find(options.normalizer)
    except _NotFoundError as error:
        return fail("check", str(error), code=2)
    passed, failures = [], {}
    try:
        with apart_from_json(options):
            passed = testing.check_normalizer(subject, features=options.features, skip=options.skip)
    except testing.ConformanceError as error:
        failures = error.failures
        if "interface" not in failures:  # else the others did not run
            chosen = [name for name in testing.CHECKS if name not in options.skip]
            passed = [name for name in chosen if name not in failures]
    if options.json:
        report = {"normalizer": options.normalizer, "passed": passed, "failures": failures}
        print(json.dumps(report, indent=2))
    else:
        _report(options.normalizer, passed, failures)
    return 1 if failures else 0


def _report(name: str, passed: list[str], failures: dict[str, str]) -> None:
    for check in passed:
        print(f"passed  {check}")
    for check, message in failures.items():
        print(f"FAILED  {check}: {message}")
    if failures:
        print(f"{name} fails {len(failures)} of {len(passed) + len(failures)} checks.")
    else:
        print(f"{name} passes all {len(passed)} checks.")


def _find(text: str) -> NormalizerLike:
    place, colon, name = text.rpartition(":")
    if not colon:
        subject: Any = text
    else:
        module = _module(place)
        try:
            subject = module
            for part in name.split("."):
                subject = getattr(subject, part)
        except AttributeError as error:
            raise _NotFoundError(f"module {module.__name__} has no {name!r}: {error}") from None
    try:
        resolve(subject)
    except NormlibError as error:
        raise _NotFoundError(str(error)) from None
    return subject  # type: ignore[no-any-return]  # resolve has looked at it


def _module(place: str) -> Any:
    name, path = place, ""
    if place.endswith(".py"):
        path = os.path.realpath(place)
        folder, file = os.path.split(path)
        sys.path.insert(0, folder)
        name = file.removesuffix(".py")
    else:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script may end by sys.exit
        raise _NotFoundError(f"cannot import {place!r}: {type(error).__name__}: {error}") from None
    finally:
        del sys.path[0]
    found = getattr(module, "__file__", None) or "Python itself"
    if path and os.path.realpath(found) != path:
        raise _NotFoundError(
            f"cannot import {place!r}: there is another module {name!r} already, from {found}. "
            "Rename the file"
        )
    return module
