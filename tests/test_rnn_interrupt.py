"""Ctrl-C ends a long sequence."""

import signal
import subprocess
import sys
import time

import pytest

INTERRUPTED = """
import signal, sys, time
import numpy as np
import normlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
n_steps, n_batch, input_size, hidden_size = map(int, sys.argv[2:])
norm = "batch" if sys.argv[1] == "batch" else "layer"
rnn = normlib.RNN(input_size, hidden_size, norm=norm, rng=0)
before = rnn.state_dict()
x = np.zeros((n_steps, n_batch, input_size), np.float32)
run = rnn if sys.argv[1] == "infer" else rnn.forward
normlib.set_num_threads(1)
rnn(x[:2])
print("ready", flush=True)
try:
    run(x)
except KeyboardInterrupt:
    end = time.monotonic()
    assert all((before[name] == array).all() for name, array in rnn.state_dict().items())
    y, _ = rnn(x[:2])
    assert np.isfinite(y).all()
    print(end, flush=True)
else:
    print("not interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("infer", (1 << 23, 1, 1, 1)),
        ("train", (1 << 14, 1, 8, 1024)),
        ("batch", (1 << 14, 2, 8, 1024)),
    ],
    ids=["tiny steps", "one wide row", "batch norm"],
)
def test_ctrl_c(method, sizes):
    """A long sequence ends soon after the signal, whatever its shape; the network is unharmed."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, method, *map(str, sizes)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert float(out) - sent < 1
