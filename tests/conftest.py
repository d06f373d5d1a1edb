"""Fixtures shared by the tests: the build of the kernels, the thread count, seeded randomness."""

import numpy as np
import pytest

import normlib
from normlib import _kernels, threads
from normlib.rnn import fused

# A package of its own, which tests/test_example_plugin.py builds.
collect_ignore = ["example_plugin"]


@pytest.fixture(params=_kernels.available_levels())
def cpu_level(request, monkeypatch):
    """Each CPU level that this machine can run, for all kernels."""
    for name in _kernels.KERNELS:
        monkeypatch.setattr(_kernels, name, _kernels.load(name, request.param))
    return request.param


@pytest.fixture(params=[1, 2, 3])
def n_threads(request, monkeypatch):
    """1, 2 and 3 threads, however small the work."""
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 1)
    normlib.set_num_threads(request.param)
    yield request.param
    normlib.set_num_threads(None)


@pytest.fixture
def rng():
    return np.random.default_rng(20160721)


@pytest.fixture
def share(monkeypatch):
    """``share(n_threads, columns)``: that many threads, for work of any size."""
    monkeypatch.setattr(fused, "SHARED_PRODUCTS", 1)
    monkeypatch.setattr(fused, "SHARED_STEP_PRODUCTS", 1)
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 1)

    def share(n_threads, columns):
        monkeypatch.setattr(fused, "FEW_ROWS", 1 << 20 if columns else 0)
        normlib.set_num_threads(n_threads)

    yield share
    normlib.set_num_threads(None)
