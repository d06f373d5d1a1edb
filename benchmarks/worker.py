"""One process for one thread count: what runs in it, and how it is started.

Some libraries read how many threads they may use when they are first imported, and JAX only then;
so every thread count gets a process of its own, started with the variables that they read.
"""

import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from benchmarks.cases import Case, check, expected
from benchmarks.peers import Peer, create
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


def measure(
    case: Case, peers: dict[str, Peer], n_threads: int, budget: float, offset: int = 0
) -> Result:
    """Check all contestants of a case against the oracle, then time those that are right."""
    inputs = case.inputs(offset)
    oracle = expected(case, offset)
    runs: dict[str, Run] = {}
    copies: dict[str, Run] = {}
    failures: dict[str, str] = {}
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
        copy = peer.method("copy", inputs)
        if copy is not None:
            copies[name] = copy
    everyone = runs | {_copy_of(name): copy for name, copy in copies.items()}
    timed = race(everyone, budget, pause=n_threads > 1)
    return Result(
        case,
        n_threads,
        {name: timed.seconds[name] for name in runs},
        {name: timed.seconds[_copy_of(name)] for name in copies},
        failures,
        timed.others,
    )


def _copy_of(name: str) -> str:
    return f"{name} copy"


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
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update({name: str(n_threads) for name in VARIABLES})
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
