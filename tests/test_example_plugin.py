"""The package in tests/example_plugin: built, installed, found by its entry point, and compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("example_plugin")

USE = """
import numpy as np
import normlib
from normlib.testing import check_normalizer

assert "absolute" in normlib.available()
assert check_normalizer("absolute") == list(normlib.testing.CHECKS)

x = np.random.default_rng(0).standard_normal((6, 3, 5)).astype(np.float32)
rnn = normlib.RNN(5, 7, norm="absolute", rng=0)
assert rnn.path == ("fused", "fused", "")
results = []
for may_fuse in (True, False):
    for direction in rnn._directions:
        direction.may_fuse = may_fuse
    y, _, cache = rnn.forward(x)
    dx, _, grads = rnn.backward(np.ones_like(y), cache)
    results.append([rnn(x)[0], y, dx, *grads.values()])
for fused, steps in zip(*results, strict=True):
    np.testing.assert_allclose(fused, steps, 1e-4, 1e-5)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """``python(*arguments)``: run where the package is installed; return what is printed."""
    folder = tmp_path_factory.mktemp("plugin")
    site = folder / "site"

    def run(*arguments):
        path = os.pathsep.join([str(site), *filter(None, sys.path)])
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    shutil.copytree(SOURCE, folder / "source")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(site)]
    run("-m", "pip", "install", "--quiet", *options, str(folder / "source"))
    return run


def test_it_passes_the_kit_and_runs_in_the_fused_loop(python):
    python("-W", "error", "-c", USE)


def test_the_command_line_finds_it(python):
    line = next(line for line in python("-m", "normlib", "list").splitlines() if "absolute" in line)
    source = "absolute_norm:AbsoluteNorm (distribution absolute-norm)"
    assert line.split() == ["absolute", *source.split(), "yes", "yes"]
    python("-m", "normlib", "check", "absolute_norm:AbsoluteNorm")
