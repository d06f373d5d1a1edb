"""One experiment as a program: options, progress, and what it saves.

An experiment is a script with a function ``measure(options, progress)`` that returns an `Outcome`.
`main` saves it as ``NAME.json`` (all figures), ``NAME.png`` (the picture) and ``NAME.rst`` (the
table of claims, which the page of the experiment shows).
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from normlib.diagnostics.plots import DPI
from normlib.info import config

__all__ = ["Claim", "Outcome", "Steps", "compare", "main", "mean_and_spread", "table"]

HEADINGS = ("claim", "the paper", "measured here", "verdict")


@dataclass(frozen=True)
class Claim:
    """One line of the table: what is said, where, what came out, and whether it holds."""

    claim: str
    paper: str
    measured: str
    verdict: str

    def __post_init__(self) -> None:
        if not self.verdict.startswith(("holds", "does not hold", "undecided")):
            raise ValueError(f"unknown verdict {self.verdict!r}")


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: figures ready for JSON, claims, and a picture."""

    figures: dict[str, Any]
    claims: list[Claim]
    picture: Figure


class Steps:
    """Progress: a bar in a terminal, a line for each finished step elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.done, self.total = 0, 0
        self.progress = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def plan(self, total: int) -> None:
        """Say how many steps there will be."""
        self.total = total
        self.progress.update(self.task, total=total)

    def step(self, text: str) -> None:
        """Report a finished step."""
        self.done += 1
        self.progress.update(self.task, advance=1, description=text)
        if not self.console.is_terminal:
            print(f"{self.done}/{self.total}  {text}", flush=True)


def main(
    measure: Callable[[argparse.Namespace, Steps], Outcome],
    *,
    name: str,
    doc: str,
    options: Mapping[str, tuple[Any, str]],
    data: str | None = None,
) -> int:
    """Run an experiment from the command line; return the exit code.

    Parameters
    ----------
    measure : callable
        The experiment.
    name : str
        Of its files.
    doc : str
        The docstring of the script: its first paragraph after the heading describes it.
    options : mapping
        By name, the default and the help of each number that may be chosen.
    data : str, optional
        What ``--data`` takes, if the experiment has it.
    """
    chosen = _parse(name, doc, options, data)
    console = Console(highlight=False)
    start = time.perf_counter()
    # Products as small as these gain next to nothing from a second thread, and threads that wait
    # for one another lose a lot where other programs run.
    try:
        with threadpool_limits(1), Steps(console) as steps:
            machine = config()
            outcome = measure(chosen, steps)
    except KeyboardInterrupt:
        print("Interrupted; nothing was saved.", file=sys.stderr)
        return 130
    folder: Path = chosen.output
    folder.mkdir(parents=True, exist_ok=True)
    name = chosen.name
    settings = {key: value for key, value in vars(chosen).items() if key not in ("output", "name")}
    if settings.get("data") is not None:
        settings["data"] = chosen.data.name
    record = {
        "name": name,
        "settings": settings,
        "machine": machine,
        "seconds": round(time.perf_counter() - start, 1),
        "figures": rounded(outcome.figures),
        "claims": [asdict(claim) for claim in outcome.claims],
    }
    files = [folder / f"{name}.{kind}" for kind in ("json", "png", "rst")]
    files[0].write_text(as_json(record), encoding="utf-8")
    outcome.picture.savefig(files[1], dpi=DPI)
    files[2].write_text(table(outcome.claims), encoding="utf-8")
    console.print(_terminal_table(outcome.claims))
    print("Saved", *files, sep="\n  ", flush=True)
    return 0


# ---- figures --------------------------------------------------------------------------------


def mean_and_spread(values: Sequence[float], form: str = ".3g") -> str:
    """Write mean ± standard deviation.

    Examples
    --------
    >>> mean_and_spread([1.0, 2.0, 3.0])
    '2.0 ± 1.0'
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) > 1 and form == ".3g" and np.all(np.isfinite(array)) and array.std():
        digits = max(0, 1 - int(np.floor(np.log10(array.std(ddof=1)))))  # two of the spread
        form = f".{digits}f"
    if not np.all(np.isfinite(array)):
        return f"not reached in {int(np.sum(~np.isfinite(array)))} of {len(array)} runs"
    spread = f" ± {array.std(ddof=1):{form}}" if len(array) > 1 else ""
    return f"{array.mean():{form}}{spread}"


def compare(better: Sequence[float], worse: Sequence[float]) -> str:
    """Judge whether one is less than the other, run by run: seeds are paired.

    Examples
    --------
    >>> compare([1, 2, 3], [2, 3, 4]), compare([1, 5], [2, 2])
    ('holds', 'undecided: less in 1 of 2 runs')
    >>> compare([3, 4], [1, 2])
    'does not hold'
    """
    less = sum(a < b for a, b in zip(better, worse, strict=True))
    if less == len(better):
        return "holds"
    return "does not hold" if less == 0 else f"undecided: less in {less} of {len(better)} runs"


def rounded(value: Any) -> Any:
    """Make figures ready for JSON: four digits are enough, and it knows neither NaN nor infinity.

    Examples
    --------
    >>> rounded({"a": [1.23456, float("nan")], "b": 7})
    {'a': [1.235, None], 'b': 7}
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, tuple | list):
        return [rounded(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def as_json(record: Mapping[str, Any]) -> str:
    """Write a record as JSON, every innermost list in one line.

    Examples
    --------
    >>> print(as_json({"a": [1, 2]}), end="")
    {
     "a": [1, 2]
    }
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    innermost = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")
    return innermost.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


# ---- tables ---------------------------------------------------------------------------------


def table(claims: Sequence[Claim]) -> str:
    """Write claims as a table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 22 30 14", ""]
    for row in (HEADINGS, *(tuple(asdict(claim).values()) for claim in claims)):
        lines += [f"   {'*' if not place else ' '} - {cell}" for place, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def _terminal_table(claims: Sequence[Claim]) -> Table:
    view = Table(*HEADINGS, show_lines=True)
    for claim in claims:
        view.add_row(*asdict(claim).values())
    return view


# ---- options --------------------------------------------------------------------------------


def _parse(
    name: str, doc: str, options: Mapping[str, tuple[Any, str]], data: str | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc.strip().split("\n\n")[1], prog=f"docs/gallery/{name}.py"
    )
    parser.add_argument("--seeds", type=_whole, default=3, metavar="N", help="runs (default: 3)")
    for key, (default, what) in options.items():
        kind = _whole if isinstance(default, int) else float
        parser.add_argument(
            f"--{key}", type=kind, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    if data is not None:
        parser.add_argument("--data", type=Path, metavar="FILE", help=data)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("gallery-output"),
        metavar="DIR",
        help="folder for figures, picture and table (default: gallery-output)",
    )
    parser.add_argument(
        "--name", default=name, help="what the files there are called (default: %(default)s)"
    )
    return parser.parse_args()


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)
