"""The command line: ``python -m benchmarks``, from a clone."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import GROUPS, OPS, Case, format_shape, parse_shape, select
from benchmarks.norms import HALVES
from benchmarks.operation import Shape
from benchmarks.peers import PEERS, REFERENCE, SCRIPTED, absent, version
from benchmarks.results import Report, machine
from benchmarks.worker import worker
from normlib import get_num_threads

__all__ = ["main"]

EXAMPLES = """\
examples:
  python -m benchmarks                                   normalizations; some twenty minutes
  python -m benchmarks rnn                               recurrent networks; some ten minutes
  python -m benchmarks --quick                           a few shapes, under a minute
  python -m benchmarks --threads 1 --ops layer_norm --shapes 512x768 64x100
  python -m benchmarks --json run.json --plot run.png --markdown run.md
  python -m benchmarks --load run.json --plot run.png    draw an earlier run

Needs rich, matplotlib for --plot, and as many of the peers as are wanted:
pip install -e '.[bench]' torch==2.13.0
"""
# Seconds for all contestants of a case, beside the warm-up.
BUDGET, QUICK_BUDGET = 1.5, 0.3
# Who takes part beside normlib: in full, and with --quick. Of recurrent networks NumPy runs only
# the roofline.
CONTESTANTS = {
    "norms": (
        tuple(name for name in PEERS if name not in SCRIPTED),
        ("PyTorch", "ONNX Runtime", "JAX", "numba", "NumPy"),
    ),
    "rnn": (("PyTorch", *SCRIPTED, "ONNX Runtime", "NumPy"),) * 2,
}
CALM = 0.2  # cores that other processes may keep busy without a retry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, save; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in options.ops or ():
        if name not in GROUPS[options.group]:
            group = next(group for group, names in GROUPS.items() if name in names)
            parser.error(
                f"{name} is in the group {group}: python -m benchmarks {group} --ops {name}"
            )
    if options.list:
        _list()
        return 0
    try:
        from rich.console import Console

        from benchmarks import report as tables
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        print(
            "benchmarks: error: rich is not installed: pip install -e '.[bench]'", file=sys.stderr
        )
        return 1
    # Tables in a file are wider than the terminal that is not there.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    report = Report.read(options.load) if options.load else Report(machine(_peers(options)))
    tables.print_head(console, report)
    complete = options.load or _measure(options, report)
    if not complete:
        console.print("Interrupted. Up to here:")
    tables.print_results(console, report)
    if options.json:
        report.save(options.json)
    if options.markdown:
        options.markdown.write_text(tables.markdown(report), encoding="utf-8")
    if options.plot and report.results:
        from benchmarks.plot import plot

        for path in plot(report, options.plot):
            console.print(f"drawn: {path}", highlight=False)
    return 0 if complete else 130


def _measure(options: argparse.Namespace, report: Report) -> bool:
    """Run all cases; False if interrupted."""
    cases, peers = _cases(options), _peers(options)
    budget = QUICK_BUDGET if options.quick else BUDGET
    total = len(cases) * len(options.threads)
    try:
        for n_threads in options.threads:
            with worker(peers, n_threads, options.offset) as run:
                for case in cases:
                    number = len(report.results) + 1
                    _progress(f"{number}/{total}  {case}, threads: {n_threads}")
                    result = run(case, budget)
                    for _ in range(options.retries):
                        if (result.others or 0) <= CALM:
                            break
                        result = min(result, run(case, budget), key=lambda r: r.others or 0)
                    report.results.append(result)
    except KeyboardInterrupt:
        return False
    finally:
        _progress("")
    return True


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _peers(options: argparse.Namespace) -> list[str]:
    wanted = options.peers or CONTESTANTS[options.group][options.quick]
    return [name for name in PEERS if name in {REFERENCE, *wanted} and not absent(name)]


def _cases(options: argparse.Namespace) -> list[Case]:
    ops = options.ops or GROUPS[options.group]
    dtypes = options.dtypes or (["float32"] if options.quick else None)
    return select(ops, options.shapes, dtypes, quick=options.quick)


def _list() -> None:
    for group, ops in GROUPS.items():
        print(f"{group}:")
        for name in ops:
            op = OPS[name]
            print(f"  {name:<20} {op.title}; {', '.join(op.dtypes)}")
            print(f"  {'':<20} {' '.join(map(format_shape, op.shapes))}")
    print("contestants:")
    for name in PEERS:
        missing = ", ".join(absent(name))
        print(f"  {name:<20} {f'needs {missing}' if missing else version(name)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure normlib beside the libraries that are installed. Each contestant is "
        "checked against a float64 oracle, then all are timed in turn; ratios are of medians.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("group", nargs="?", choices=list(GROUPS), default="norms", help="default: norms")
    add(
        "--threads",
        nargs="+",
        type=_threads,
        metavar="N",
        default=sorted({1, get_num_threads()}),
        help="thread counts (default: 1, and as many as this process may use)",
    )
    add("--shapes", nargs="+", type=_shape, metavar="SHAPE", help="such as 512x768, 32x64x56x56")
    add("--ops", nargs="+", choices=list(OPS), metavar="OP", help="operations: see --list")
    add(
        "--dtypes", nargs="+", choices=["float32", "float64", *HALVES], metavar="DTYPE", help="of x"
    )
    add("--peers", nargs="+", choices=list(PEERS), metavar="NAME", help="only these, and normlib")
    add("--quick", action="store_true", help="fewer shapes and contestants, float32")
    add(
        "--offset",
        type=int,
        default=0,
        metavar="BYTES",
        help="where arrays begin in a cache line of 64 bytes (default: 0; numpy.empty: often 16)",
    )
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help=f"measure a case again, up to N times, if other processes kept more than {CALM} cores "
        "busy meanwhile, and keep the calmest (default: 0)",
    )
    add("--json", type=Path, metavar="FILE", help="save all figures")
    add("--markdown", type=Path, metavar="FILE", help="save the tables")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="save pictures, one a thread count: speed by that of a copy or product",
    )
    add("--load", type=Path, metavar="FILE", help="show what --json saved; measure nothing")
    add("--list", action="store_true", help="show operations, shapes and contestants")
    return parser


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")
    return int(text)


def _shape(text: str) -> Shape:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
