"""What the demo prints: bars that move in a terminal, plain lines elsewhere, and a table."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from normlib.demo.results import Run, Summary

__all__ = ["Report"]


class Report:
    """Prints on standard output; a context manager around the training.

    Parameters
    ----------
    title : str
        What is done, in a line.
    norms : tuple of str
        The normalizers, in the order in which they run.
    seeds, epochs : int
        Runs for each normalizer, and the epochs of one.
    """

    def __init__(self, title: str, norms: tuple[str, ...], seeds: int, epochs: int) -> None:
        self.console = Console(highlight=False)
        self.epochs = epochs
        self.width = max(map(len, norms))
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=300,  # seconds: normalizers take turns, and not the same time
        )
        total = seeds * epochs
        self.rows = {
            norm: self.progress.add_task(norm, total=total, figures="waiting") for norm in norms
        }
        self.all = self.progress.add_task("epochs", total=total * len(norms), figures="")
        self.console.print(
            f"{title}: {_count(seeds, 'run')} of {_count(epochs, 'epoch')} with each normalizer. "
            "Ctrl-C stops and sums up.",
            soft_wrap=True,
        )

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

    def epoch(self, run: Run) -> None:
        """Show the last epoch of a run."""
        last = run.epochs[-1]
        figures = f"loss {last.loss:<#7.3g} test accuracy {last.test_accuracy:6.1%}"
        if self.console.is_terminal:
            self.progress.update(
                self.rows[run.norm], advance=1, figures=f"seed {run.seed}  {figures}"
            )
            self.progress.update(self.all, advance=1)
            left = self.progress.tasks[self.all].time_remaining
            self.progress.update(self.all, figures="" if left is None else f"{left:.0f} s left")
        else:
            number = f"{len(run.epochs):{len(str(self.epochs))}}/{self.epochs}"
            print(
                f"{run.norm:{self.width}}  seed {run.seed}  epoch {number}  {figures}  "
                f"{last.seconds:.2f} s",
                flush=True,
            )

    def summary(self, summaries: list[Summary], target: float, complete: bool) -> None:
        """Print the table."""
        if not complete:
            self.console.print("Interrupted. Up to here:")
        if not summaries:
            self.console.print("no epoch was completed.")
            return
        table = Table(
            caption="Accuracy after the last epoch: mean ± standard deviation over runs. "
            "Epochs and seconds: medians. All on one thread.",
            caption_justify="left",
        )
        table.add_column("normalizer", no_wrap=True)
        for heading in ("runs", "test accuracy", f"epochs to {target:.0%}", "seconds per epoch"):
            table.add_column(heading, justify="right")
        for summary in summaries:
            spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
            reached = summary.epochs_to_target
            table.add_row(
                summary.norm,
                str(summary.runs or "cut short"),
                f"{summary.test_accuracy:.1%}{spread}",
                "not reached" if reached is None else str(reached),
                f"{summary.seconds_per_epoch:.2f}",
            )
        self.console.print(table)

    def saved(self, files: list[Path]) -> None:
        """Print what was written, and where."""
        print("Saved", *files, sep="\n  ", flush=True)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
