"""Tables of a run: in the terminal, and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.cases import OPS, format_shape
from benchmarks.peers import PEERS, REFERENCE, SCRIPTED
from benchmarks.results import Report, Result, Summary, by_operation, summarize

__all__ = ["markdown", "print_head", "print_results", "tables"]

LEGENDS = {
    "copy": (
        "Ratios are a contestant's time by normlib's: below 1, normlib loses (red; bold in "
        "Markdown). lead: the ratio to the faster of PyTorch and ONNX Runtime, yellow where it "
        "misses the goal (1.15, or 1.05 where that rival runs above 0.8 of a copy). µs, GB/s: "
        "normlib's; of copy: its GB/s by those of the faster of numpy.copyto and "
        "torch.Tensor.copy_."
    ),
    "peak": (
        "Shapes are T, N, I, H: steps, batch, features of x and of h. Ratios are a contestant's "
        "time by normlib's: below 1, normlib loses (red; bold in Markdown). lead: the ratio to the "
        "fastest contestant but NumPy in the same operation. TorchScript: layer-normalized cells a "
        "step at a time; at once: the same with the inputs of all steps multiplied together. to "
        "plain: the ratio to the fastest plain one of that cell. "
        "µs, GFLOP/s: normlib's, counting the products with the weights; of peak: its GFLOP/s by "
        "those of the fastest product of two 512x512 matrices by PyTorch, NumPy and normlib."
    ),
}
LOSS, MISS = "bold red", "yellow"


@dataclass
class Cell:
    """A text and, in a terminal, its style."""

    text: str
    style: str = ""


@dataclass
class Grid:
    """A table, before it is drawn."""

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)


def tables(results: Sequence[Result]) -> Iterator[Grid]:
    """One table for each thread count, operation and dtype."""
    for (threads, op, dtype), group in by_operation(results).items():
        names = [
            name
            for name in PEERS
            if name != REFERENCE and any(name in r.seconds or name in r.failures for r in group)
        ]
        roof, plain = OPS[op].roof, bool(OPS[op].beside)
        columns = ["shape", "µs", OPS[op].unit, f"of {roof}", "lead", "over"]
        columns += [f"to {OPS[op].beside_kind}", "of"] if plain else []
        loops = "/".join(sorted({result.loop for result in group if result.loop}))
        title = f"{OPS[op].title}, {dtype}, {_threads(threads)}"
        grid = Grid(f"{title}, {loops} loop" if loops else title, [*columns, *names])
        grid.rows = [_row(result, names, plain) for result in group]
        yield grid


def _row(result: Result, names: Sequence[str], plain: bool) -> list[Cell]:
    ours, speed, share = result.ours, result.speed(), result.of_roof()
    return [
        Cell(format_shape(result.case.shape)),
        Cell("failed", LOSS) if ours is None else Cell(_digits(ours * 1e6)),
        Cell("" if speed is None else _digits(speed)),
        Cell("" if share is None else f"{share:.2f}"),
        _ratio(result.lead, result.goal),
        Cell(result.rival or ""),
        *(
            [
                _ratio(result.plain_lead, result.case.operation.beside_floor),
                Cell(result.plain_rival or ""),
            ]
            if plain
            else []
        ),
        *(
            Cell("failed", MISS) if name in result.failures else _ratio(result.ratio(name), 1)
            for name in names
        ),
    ]


def _ratio(ratio: float | None, goal: float) -> Cell:
    if ratio is None:
        return Cell("")
    style = LOSS if ratio < min(1, goal) else MISS if ratio < goal else ""
    return Cell(_digits(ratio), style)


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _summary(summaries: Sequence[Summary]) -> Grid:
    scripted = any(name in s.worst.rival or name in s.title for s in summaries for name in SCRIPTED)
    rivals = "PyTorch, or TorchScript," if scripted else "PyTorch"
    grid = Grid(
        f"Leads over the faster of {rivals} and ONNX Runtime",
        ["operation", "dtype", "threads", "geometric mean", "goal", "floor", "at", "losses"],
    )
    for s in summaries:
        grid.rows.append(
            [
                Cell(s.title),
                Cell(s.dtype),
                Cell(str(s.threads)),
                _ratio(s.mean, s.goal),
                Cell(f"{s.goal:.3g}"),
                _ratio(s.worst.ratio, s.worst.goal),
                Cell(f"{format_shape(s.worst.shape)}, {s.worst.rival}"),
                Cell(f"{s.losses} of {s.shapes}"),
            ]
        )
    return grid


def _failures(results: Sequence[Result]) -> list[str]:
    cases: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for failure in result.failures.items():
            cases.setdefault(failure, []).append(f"{result.case}, {_threads(result.threads)}")
    return [
        f"{name} failed: {problem} ({'; '.join(where)})" for (name, problem), where in cases.items()
    ]


def _legends(results: Sequence[Result]) -> list[str]:
    roofs = {result.case.operation.roof for result in results}
    return [legend for roof, legend in LEGENDS.items() if roof in roofs]


def _threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"


# ---- terminal ------------------------------------------------------------------------------------


def print_head(console: Console, report: Report) -> None:
    """Print the machine and the versions."""
    for name, value in report.head.items():
        console.print(f"[bold]{name:<13}[/] {value}", highlight=False)


def print_results(console: Console, report: Report) -> None:
    """Print all tables, the summary at the foot."""
    for grid in tables(report.results):
        console.print(_drawn(grid))
    for problem in _failures(report.results):
        console.print(Text(problem, style=MISS))
    for legend in _legends(report.results):
        console.print(legend, highlight=False)
    console.print(f"Load: {report.load}.", highlight=False)
    summaries = summarize(report.results)
    if summaries:
        console.print(_drawn(_summary(summaries)))


def _drawn(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left")
    for column in grid.columns:
        words = column in {"shape", "over", "of", "operation", "dtype", "at"}
        table.add_column(
            column, justify="left" if words else "right", no_wrap=words, overflow="fold"
        )
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
    return table


# ---- Markdown ------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Head, summary and tables."""
    lines = [f"- {name}: {value}" for name, value in report.head.items()]
    summaries = summarize(report.results)
    grids = [_summary(summaries)] if summaries else []
    for grid in [*grids, *tables(report.results)]:
        lines += [
            "",
            f"### {grid.title}",
            "",
            _line(grid.columns),
            _line(["---"] * len(grid.columns)),
        ]
        lines += [_line([_bold(cell) for cell in row]) for row in grid.rows]
    for legend in _legends(report.results):
        lines += ["", legend]
    lines += ["", f"Load: {report.load}."]
    lines += [f"\n{problem}." for problem in _failures(report.results)]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _bold(cell: Cell) -> str:
    return f"**{cell.text}**" if cell.style == LOSS else cell.text
