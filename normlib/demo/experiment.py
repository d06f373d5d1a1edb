"""The demo: the same network, trained once with each normalizer."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from normlib.demo import plots
from normlib.demo.data import Reading, load
from normlib.demo.report import Report
from normlib.demo.results import Run, as_dict, summarize
from normlib.demo.train import Classifier, train
from normlib.info import config

__all__ = ["Settings", "run"]

FIGURES = "figures.json"
LEARNING_CURVES = "learning-curves.png"
HIDDEN_STATE = "hidden-state.png"


@dataclass(frozen=True)
class Settings:
    """What to run; all but `norms` is common to every normalizer.

    Attributes
    ----------
    by : {"pixel", "row"}
        What a time step shows of an image.
    cell : {"lstm", "gru", "rnn"}
    norms : tuple of str
        Registered names.
    hidden, epochs, batch, seeds : int
        Units, passes over the images, images a batch, and how many runs: seeds 0, 1, ...
    learning_rate : float
    target : float
        The test accuracy by which the speed of learning is measured.
    output : Path
        A folder for the pictures and the figures.
    """

    by: Reading
    cell: str
    norms: tuple[str, ...]
    hidden: int
    epochs: int
    batch: int
    seeds: int
    learning_rate: float
    target: float
    output: Path

    @property
    def title(self) -> str:
        """What is done, in a line."""
        cell = {"lstm": "An LSTM", "gru": "A GRU", "rnn": "A tanh RNN"}[self.cell]
        return f"{cell} of {self.hidden} units reads digits {self.by} by {self.by}"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings, ready for JSON."""
        return {**asdict(self), "output": str(self.output)}


def run(settings: Settings) -> bool:
    """Train, show and save; return False if interrupted from the keyboard.

    Writes ``figures.json``, ``learning-curves.png`` and ``hidden-state.png``, also of what was done
    until an interruption.

    Raises
    ------
    NormlibError
        If a normalizer is unknown, or does not work in a network. Nothing has been trained then.
    OSError
        If the output folder cannot be written to.
    """
    _, test = load(settings.by)
    for norm in settings.norms:
        _classifier(settings, norm, 0, test.x.shape)
    settings.output.mkdir(parents=True, exist_ok=True)

    report = Report(settings.title, settings.norms, settings.seeds, settings.epochs)
    runs: list[Run] = []
    # Products as small as these gain next to nothing from a second thread, and threads that wait
    # for one another lose a lot where other programs run.
    with threadpool_limits(1):
        machine = config()
        with report:
            complete = _train_all(settings, runs, report)
    runs = [run for run in runs if run.epochs]

    figures = {
        "settings": settings.as_dict(),
        "machine": machine,
        "complete": complete,
        "results": as_dict(runs, settings.target),
    }
    path = settings.output / FIGURES
    path.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    report.summary(summarize(runs, settings.target), settings.target, complete)
    files = [path]
    if runs:
        files += [settings.output / name for name in (LEARNING_CURVES, HIDDEN_STATE)]
        plots.learning_curves(runs, settings.title, files[1])
        plots.hidden_states(runs, settings.title, files[2])
    report.saved(files)
    return complete


def _train_all(settings: Settings, runs: list[Run], report: Report) -> bool:
    """Fill `runs`, seed by seed so that every normalizer has had the same when it is cut short."""
    try:
        for seed in range(settings.seeds):
            digits, test = load(settings.by, seed=seed)
            for norm in settings.norms:
                classifier = _classifier(settings, norm, seed, test.x.shape)
                run = Run(norm, seed, before=classifier.hidden_state(test.x))
                runs.append(run)
                for epoch in train(
                    classifier,
                    digits,
                    test,
                    epochs=settings.epochs,
                    batch_size=settings.batch,
                    learning_rate=settings.learning_rate,
                    seed=seed,
                ):
                    run.epochs.append(epoch)
                    report.epoch(run)
                run.after = classifier.hidden_state(test.x)
    except KeyboardInterrupt:
        return False
    return True


def _classifier(settings: Settings, norm: str, seed: int, shape: tuple[int, ...]) -> Classifier:
    n_steps, _, input_size = shape
    return Classifier(
        input_size, settings.hidden, n_steps, cell=settings.cell, norm=norm, seed=seed
    )
