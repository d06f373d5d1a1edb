"""``normlib bench``: how fast normlib is here, measured by the machine's own limits."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from normlib import _kernels
from normlib.arrays import Array
from normlib.cli.arguments import Commands, add_command, add_json, positive_number, print_table
from normlib.functional import (
    batch_norm,
    batch_norm_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
)
from normlib.info import config
from normlib.threads import get_num_threads

__all__ = ["Row", "add", "measure"]

DESCRIPTION = """\
Measures normlib by what this machine can do at most: normalization by the speed of numpy.copyto on
an array of the same size, and the recurrent network's matrix product by the best rate of NumPy's
BLAS. No other library is needed; "python -m benchmarks" in a clone compares with those installed.

GB/s count each input and output of x's size once. Backward passes and batch statistics read x
twice, so they cannot come near a copy outside the cache. Calls take turns, and the figures are
medians; let nothing else run.
"""

EXAMPLES = """\
examples:
  normlib bench
  normlib bench --seconds 20                 more measurements
  OMP_NUM_THREADS=1 normlib bench            on one thread; BLAS too
  normlib bench --json > here.json
"""

# In the cache, and well outside.
SHAPES = ((256, 768), (16384, 1024))
# Rows, inputs, outputs: a batch of 64 in an LSTM of 256 units.
PRODUCT = (64, 256, 1024)
SQUARES = (256, 512, 1024)
# OpenMP threads spin for some milliseconds after a call, and would take a core from the next one.
PAUSE = 0.01


@dataclass(frozen=True)
class Row:
    """One measurement: ``rate`` in ``unit``, and its share of the machine's limit."""

    operation: str
    shape: tuple[int, ...]
    seconds: float
    rate: float
    unit: str
    share: float | None = None


def measure(seconds: float) -> list[Row]:
    """Measure everything, in about so many seconds."""
    budget = seconds / (len(SHAPES) + 1)
    rows = [row for shape in SHAPES for row in _bandwidth(shape, budget)]
    return rows + _products(budget)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "bench",
        _run,
        summary="measure the speed here, beside a copy and a matrix product",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument(
        "--seconds",
        type=positive_number,
        default=6.0,
        metavar="X",
        help="how long to measure, about (default: 6)",
    )
    add_json(parser)


def _run(options: argparse.Namespace) -> int:
    rows = measure(options.seconds)
    machine = config()
    if options.json:
        report = {"machine": machine, "results": [asdict(row) for row in rows]}
        print(json.dumps(report, indent=2))
        return 0
    print(
        f"normlib {machine['normlib']}, {machine['cpu']}, level {machine['cpu_level']}, "
        f"{machine['threads']} thread(s), float32"
    )
    table: list[tuple[Any, ...]] = [("operation", "shape", "time", "speed", "of the limit")]
    for row in rows:
        table.append(
            (
                row.operation,
                " x ".join(map(str, row.shape)),
                _time(row.seconds),
                f"{row.rate:.1f} {row.unit}",
                "limit" if row.share is None else f"{row.share:.0%}",
            )
        )
    print_table(table, right=(2, 3, 4))
    return 0


def _bandwidth(shape: tuple[int, int], budget: float) -> list[Row]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    dy, out = np.ones_like(x), np.empty_like(x)
    gain, bias = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
    _, mean, rstd = layer_norm_forward(x, gain, bias)
    batch_mean, batch_var = x.mean(axis=0, dtype=np.float64), x.var(axis=0, dtype=np.float64)
    # By name, the call and how many arrays of x's size it reads and writes.
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: np.copyto(out, x), 2),
        "layer norm": (lambda: layer_norm(x, gain, bias, out=out), 2),
        "layer norm, backward": (lambda: layer_norm_backward(dy, x, mean, rstd, gain), 3),
        "batch norm, inference": (
            lambda: batch_norm(x, batch_mean, batch_var, gain, bias, out=out),
            2,
        ),
        "batch norm, training": (lambda: batch_norm_forward(x, gain, bias, out=out), 2),
    }
    times = _take_turns({name: call for name, (call, _) in calls.items()}, budget)
    rates = {name: n * x.nbytes / times[name] / 1e9 for name, (_, n) in calls.items()}
    return [
        Row(
            name,
            shape,
            times[name],
            rate,
            "GB/s",
            None if name == "copy" else rate / rates["copy"],
        )
        for name, rate in rates.items()
    ]


def _products(budget: float) -> list[Row]:
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    squares = {size: (matrix(size, size), matrix(size, size)) for size in SQUARES}
    n, k, m = PRODUCT
    a, b, out = matrix(n, k), matrix(k, m), np.empty((n, m), np.float32)
    packed = _kernels.product.pack(b)
    threads = get_num_threads()

    def rnn_product() -> None:
        _kernels.product.product(a, packed, out, threads)

    # First, and apart: the threads of BLAS would spin through several turns of the other's.
    own = _take_turns({"": rnn_product}, budget / 2)[""]
    calls: dict[str, Callable[[], object]] = {
        str(size): partial(np.matmul, *pair) for size, pair in squares.items()
    }
    times = _take_turns(calls, budget / 2)
    rates = {size: 2e-9 * size**3 / times[str(size)] for size in SQUARES}
    best = max(SQUARES, key=rates.__getitem__)
    rate = 2e-9 * n * k * m / own
    return [
        Row("matrix product, BLAS", (best, best, best), times[str(best)], rates[best], "GFLOP/s"),
        Row("RNN's product", PRODUCT, own, rate, "GFLOP/s", rate / rates[best]),
    ]


def _take_turns(calls: Mapping[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Return the median seconds of each call; three rounds at least."""
    for call in calls.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + budget
    rest = PAUSE if get_num_threads() > 1 else 0
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        for name, call in calls.items():
            time.sleep(rest)
            call()  # its data back into the cache, its threads awake
            for _ in range(3):
                start = time.perf_counter()
                call()
                samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(own) for name, own in samples.items()}


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
