"""Measures what the constants of the code were chosen from: ``python -m benchmarks.thresholds``.

threads    `normlib.threads.MIN_ELEMENTS`: elements for which a second thread begins to pay.
streaming  ``STREAM_FLOATS`` in ``normlib/_kernels/vec.pxd``: elements of an output from which
           stores go past the cache.
groups     ``GROUP_FLOATS`` in ``normlib/_kernels/rows.pxd``: elements in the rows that a
           thread takes at a time.
product    `normlib.rnn.direction.PRODUCTS_PER_ELEMENT`: multiply-adds of a product that count as
           one element.

Constants in Python are varied here. Those in Cython are compiled in: what shows from outside is the
time of an element, by size, beside that of a copy, in which a badly chosen constant makes a step.
To vary one: write another value there, build (``pip install -e . --no-build-isolation``),
run this again, and compare the columns "of copy", which a change of the machine's speed leaves.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import normlib
from benchmarks.operation import aligned_empty
from benchmarks.timing import Run, race
from normlib import _kernels, threads
from normlib.rnn import direction

__all__ = ["SUBJECTS", "constant", "main"]

BUDGET = 0.5  # seconds for each line of a table
PAYS = 1.1  # speed-up from which a second thread is worth a core


def constant(name: str, file: str) -> str:
    """The value of a compile-time constant, as the kernel's source has it."""
    source = Path(_kernels.__file__).with_name(file)
    if not source.exists():
        return "unknown: not a source tree"
    found = re.search(rf"^\s*{name}\s*=\s*(.+?)\s*(#|$)", source.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else f"not in {file}"


@contextmanager
def _n_threads(n: int) -> Iterator[None]:
    """So many threads, however small the work."""
    least = threads.MIN_ELEMENTS
    threads.MIN_ELEMENTS = 1
    normlib.set_num_threads(n)
    try:
        yield
    finally:
        threads.MIN_ELEMENTS = least
        normlib.set_num_threads(None)


def _with_threads(n: int, call: Run) -> Run:
    def run() -> object:
        with _n_threads(n):
            return call()

    return run


def _threshold(speed_ups: Sequence[tuple[int, float]]) -> str:
    """The least size from which a second thread pays at all sizes measured."""
    paying = None
    for size, speed_up in reversed(speed_ups):
        if speed_up < PAYS:
            break
        paying = size
    return "none of these" if paying is None else f"{paying}"


def measure_threads() -> None:
    """MIN_ELEMENTS, for which two threads have twice as many."""
    print(f"MIN_ELEMENTS = {threads.MIN_ELEMENTS}: two threads from {2 * threads.MIN_ELEMENTS} on")
    print(f"{'elements':>10} {'layer norm':>12} {'batch norm':>12}   speed-up by a second thread")
    speed_ups: dict[str, list[tuple[int, float]]] = {"layer norm": [], "batch norm": []}
    for size in (1 << power for power in range(12, 20)):
        layer, batch = _norms(size)
        speed_ups["layer norm"].append((size, _speed_up(layer)))
        speed_ups["batch norm"].append((size, _speed_up(batch)))
        print(f"{size:>10} {_last(speed_ups['layer norm'])} {_last(speed_ups['batch norm'])}")
    for name, column in speed_ups.items():
        print(f"a second thread gains {PAYS} times in {name} from: {_threshold(column)}")


def _last(column: list[tuple[int, float]]) -> str:
    return f"{column[-1][1]:>12.2f}"


def _norms(size: int) -> tuple[Run, Run]:
    """Layer norm and batch norm of so many elements, into a given output."""
    x = _random((size // 512, 512))
    out, ones, zeros = np.empty_like(x), np.ones(512, np.float32), np.zeros(512, np.float32)
    return (
        lambda: normlib.layer_norm(x, ones, zeros, out=out),
        lambda: normlib.batch_norm(x, zeros, ones, ones, zeros, out=out),
    )


def _speed_up(call: Run) -> float:
    runs = {str(n): _with_threads(n, call) for n in (1, 2)}
    seconds = race(runs, BUDGET, pause=True).seconds
    return seconds["1"] / seconds["2"]


def measure_streaming() -> None:
    """STREAM_FLOATS, by the size of the output."""
    print(f"STREAM_FLOATS = {constant('STREAM_FLOATS', 'vec.pxd')}")
    _elements([(size // 1024, 1024) for size in (1 << power for power in range(16, 26))])


def measure_groups() -> None:
    """GROUP_FLOATS, by the size of a row: groups hold fewer rows as these grow."""
    print(f"GROUP_FLOATS = {constant('GROUP_FLOATS', 'rows.pxd')}")
    _elements([((1 << 17) // n, n) for n in (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096, 8192)])


def _elements(shapes: Sequence[tuple[int, int]]) -> None:
    """Nanoseconds of an element of layer norm with out=, beside a copy's."""
    for n_threads in sorted({1, normlib.get_num_threads()}):
        print(f"{n_threads} thread(s), ns of an element; the copy is numpy.copyto, on one thread")
        print(f"{'shape':>14} {'elements':>10} {'layer norm':>12} {'copy':>8} {'of copy':>8}")
        for shape in shapes:
            ours, copy = _layer_norm_and_copy(shape, n_threads)
            name, size = f"{shape[0]}x{shape[1]}", shape[0] * shape[1]
            print(f"{name:>14} {size:>10} {ours:>12.3f} {copy:>8.3f} {copy / ours:>8.2f}")


def _layer_norm_and_copy(shape: tuple[int, int], n_threads: int) -> tuple[float, float]:
    """Nanoseconds of an element of each."""
    x, out, gain = _random(shape), aligned_empty(shape, "float32"), np.ones(shape[1], np.float32)
    runs: dict[str, Run] = {
        "ours": lambda: normlib.layer_norm(x, gain, gain, out=out),
        "copy": lambda: np.copyto(out, x),
    }
    normlib.set_num_threads(n_threads)
    try:
        seconds = race(runs, BUDGET, pause=n_threads > 1).seconds
    finally:
        normlib.set_num_threads(None)
    return seconds["ours"] / x.size * 1e9, seconds["copy"] / x.size * 1e9


def measure_product() -> None:
    """PRODUCTS_PER_ELEMENT, by the size of a product with (4·H, H) weights."""
    value = getattr(direction, "PRODUCTS_PER_ELEMENT", None)
    if value is None:
        print("PRODUCTS_PER_ELEMENT is not in normlib.rnn.direction")
        return
    print(
        f"PRODUCTS_PER_ELEMENT = {value}: two threads from "
        f"{2 * threads.MIN_ELEMENTS * value} multiply-adds on"
    )
    print(f"{'rows':>6} {'H':>5} {'multiply-adds':>14} {'1 thread, µs':>13} {'speed-up':>9}")
    rows: list[tuple[int, float]] = []
    for n_rows, hidden in (
        (4, 64),
        (16, 64),
        (16, 128),
        (32, 128),
        (32, 256),
        (64, 256),
        (64, 512),
    ):
        one, two = _product(n_rows, hidden, 1), _product(n_rows, hidden, 2)
        seconds = race({"1": one, "2": two}, BUDGET, pause=True).seconds
        speed_up = seconds["1"] / seconds["2"]
        products = n_rows * hidden * 4 * hidden
        rows.append((products, speed_up))
        one_thread = seconds["1"] * 1e6
        print(f"{n_rows:>6} {hidden:>5} {products:>14} {one_thread:>13.1f} {speed_up:>9.2f}")
    print(f"a second thread gains {PAYS} times from: {_threshold(rows)} multiply-adds")


def _product(n_rows: int, hidden: int, n_threads: int) -> Run:
    """Rows of H by (H, 4·H) weights."""
    a, weights = _random((n_rows, hidden)), _random((hidden, 4 * hidden))
    packed, out = _kernels.product.pack(weights), np.empty((n_rows, 4 * hidden), np.float32)
    return lambda: _kernels.product.product(a, packed, out, n_threads)


def _random(shape: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    x = aligned_empty(shape, "float32")
    np.random.default_rng(1607).standard_normal(dtype=np.float32, out=x)
    return x


SUBJECTS = {
    "threads": measure_threads,
    "streaming": measure_streaming,
    "groups": measure_groups,
    "product": measure_product,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.thresholds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)} (default: all)"
    )
    subjects = parser.parse_args(arguments).subjects or list(SUBJECTS)
    for name in subjects:
        if name not in SUBJECTS:
            parser.error(f"SUBJECT must be one of {', '.join(SUBJECTS)}; got {name!r}")
    for place, name in enumerate(subjects):
        print(end="\n" if place else "")
        SUBJECTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
