"""One process for one thread count: what runs in it, and how it is started.

Some libraries read how many threads they may use when they are first imported, and JAX only then;
so every thread count gets a process of its own, started with the variables that they read.
"""

import multiprocessing
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from benchmarks.cases import Case, check, expected
from benchmarks.peers import REFERENCE, Peer, create
from benchmarks.peers.base import Run
from benchmarks.results import Result
from benchmarks.timing import race

__all__ = ["Worker", "measure", "worker"]

# Of OpenMP, OpenBLAS, MKL, numba, and XLA, which JAX runs on.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NPROC",
)
# Threads of OpenBLAS spin for 2**26 ticks of a clock after a product, longer than contestants rest:
# they would take cores from the next one.
CALM = {"OPENBLAS_THREAD_TIMEOUT": "20"}


def measure(
    case: Case, peers: dict[str, Peer], n_threads: int, budget: float, offset: int = 0
) -> Result:
    """Check all contestants of a case against the oracle, then time those that are right."""
    failures: dict[str, str] = {}
    runs = _checked(case, peers, offset, failures)
    beside: dict[str, Run] = {}
    if case.beside is not None:
        own = case.operation.beside_own
        others = {name: peer for name, peer in peers.items() if (name == REFERENCE) == own}
        wrong: dict[str, str] = {}
        beside = _checked(case.beside, others, offset, wrong)
        kind = case.operation.beside_kind
        failures |= {f"{name}, {kind},": problem for name, problem in wrong.items()}
    roofs: dict[str, Run] = {}
    inputs = case.inputs(offset)
    for name, peer in peers.items():
        roof = peer.method(case.operation.roof_method, inputs)
        if roof is not None:
            roofs[name] = roof
    kinds = {"run": runs, "beside": beside, "roof": roofs}
    everyone = {(kind, name): run for kind, group in kinds.items() for name, run in group.items()}
    timed = race(everyone, budget, pause=n_threads > 1)
    if case.operation.best_roof:
        timed.seconds.update({place: timed.best[place] for place in everyone if place[0] == "roof"})
    seconds = {
        kind: {name: timed.seconds[kind, name] for name in group} for kind, group in kinds.items()
    }
    return Result(
        case,
        n_threads,
        seconds["run"],
        seconds["roof"],
        failures,
        timed.others,
        seconds["beside"],
        case.operation.loop(),
    )


def _checked(
    case: Case, peers: Mapping[str, Peer], offset: int, failures: dict[str, str]
) -> dict[str, Run]:
    """The calls of those whose outputs are right; what is wrong with the others."""
    inputs = case.inputs(offset)
    oracle = expected(case, offset)
    runs: dict[str, Run] = {}
    for name, peer in peers.items():
        try:
            run = peer.prepare(case, inputs)
            if run is not None:
                problem = check(case, peer.arrays(run()), oracle)
                if problem is None:
                    runs[name] = run
                else:
                    failures[name] = problem
        except Exception as error:  # whatever a library raises, the others go on
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return runs


class Worker:
    """Runs cases in the process that it is given."""

    def __init__(self, pool: ProcessPoolExecutor, n_threads: int, offset: int) -> None:
        self.pool = pool
        self.n_threads = n_threads
        self.offset = offset

    def __call__(self, case: Case, budget: float) -> Result:
        return self.pool.submit(_measure, case, self.n_threads, budget, self.offset).result()


_peers: dict[str, Peer] = {}


def _start(names: Sequence[str], n_threads: int) -> None:
    warnings.simplefilter("ignore")
    _peers.update({name: create(name, n_threads) for name in names})


def _measure(case: Case, n_threads: int, budget: float, offset: int) -> Result:
    return measure(case, _peers, n_threads, budget, offset)


@contextmanager
def worker(names: Sequence[str], n_threads: int, offset: int = 0) -> Iterator[Worker]:
    """A process in which these contestants have so many threads."""
    variables = dict.fromkeys(VARIABLES, str(n_threads)) | CALM
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_start, initargs=(names, n_threads)
    )
    try:
        yield Worker(pool, n_threads, offset)
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
