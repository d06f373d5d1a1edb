"""What a compiled plugin costs beside a built-in normalizer: ``python -m benchmarks.plugin``.

An LSTM with the normalizer that docs/write_a_normalizer.md compiles with numba, one with the
built-in RMS norm, and one with the same formula in NumPy, step by step; the code is the page's own.
Needs numba.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import normlib
from benchmarks.cases import format_shape, parse_shape
from benchmarks.operation import Shape
from benchmarks.timing import race

__all__ = ["main", "seconds"]

PAGE = Path(__file__).parent.parent / "docs" / "write_a_normalizer.md"
SHAPE = (100, 32, 256, 256)
BUDGET = 10.0  # seconds for each table
GOAL = 1.3


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plugin", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of normlib (default: %(default)s)")
    parser.add_argument(
        "--shape", type=parse_shape, default=SHAPE, help="TxNxIxH (default: 100x32x256x256)"
    )
    options = parser.parse_args(arguments)
    normlib.set_num_threads(options.threads)
    norms = {"built-in": "rms", "numba": compiled(), "NumPy": "my-rms"}
    print(f"LSTM, {format_shape(options.shape)}, float32, {options.threads} thread(s)")
    for mode in ("inference", "training"):
        times = seconds(norms, options.shape, training=mode == "training")
        print(f"\n{mode:14}ms  of built-in")
        for name, time in times.items():
            print(f"{name:10}{1e3 * time:6.2f}  {time / times['built-in']:11.2f}")
    print(f"\ngoal: numba within {GOAL} of built-in")
    normlib.set_num_threads(None)
    return 0


def compiled() -> Any:
    """Run the page as far as its normalizer by numba; return that."""
    page = PAGE.read_text(encoding="utf-8").partition("### In C")[0]
    # A module, since the page pickles what it defines.
    module = sys.modules["page"] = ModuleType("page")
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module.NumbaRMSNorm


def seconds(norms: dict[str, Any], shape: Shape, *, training: bool) -> dict[str, float]:
    """Seconds of a call of an LSTM with each normalizer: inference, or forward and backward."""
    n_steps, n_batch, n_inputs, hidden = shape
    x = np.random.default_rng(0).standard_normal((n_steps, n_batch, n_inputs)).astype(np.float32)

    def run(rnn: normlib.RNN) -> None:
        if training:
            y, _, cache = rnn.forward(x)
            rnn.backward(y, cache)
        else:
            rnn(x)

    networks = {
        name: normlib.RNN(n_inputs, hidden, norm=norm, rng=0) for name, norm in norms.items()
    }
    runs = {name: lambda rnn=rnn: run(rnn) for name, rnn in networks.items()}
    return race(runs, BUDGET, pause=normlib.get_num_threads() > 1).seconds


if __name__ == "__main__":
    sys.exit(main())
