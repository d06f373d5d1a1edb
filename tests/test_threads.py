"""The thread count: default, limits, fork, and calls from many Python threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import normlib
from normlib import threads
from normlib._kernels import cpu
from normlib.errors import ParameterError

pytestmark = pytest.mark.skipif(not cpu.openmp(), reason="a build without OpenMP has one thread")


@pytest.fixture(autouse=True)
def restore():
    yield
    normlib.set_num_threads(None)


def threads_of(**environment):
    """The default thread count of a new process with that environment."""
    code = "import normlib; print(normlib.get_num_threads())"
    return int(
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )


def test_default_is_what_the_process_may_use():
    default = normlib.get_num_threads()
    assert 1 <= default <= len(os.sched_getaffinity(0))
    assert threads_of(OMP_NUM_THREADS="1") == 1
    assert threads_of(OMP_NUM_THREADS="4096") == default
    assert threads_of(OMP_NUM_THREADS="1,4") == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_counts():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "import normlib; print(normlib.get_num_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert int(result.stdout) == 1


@pytest.mark.parametrize(
    ("content", "expected"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_cgroup_quota(content, expected, monkeypatch):
    monkeypatch.setattr(threads.Path, "read_text", lambda path: content)
    assert threads._cgroup_quota() == expected


def test_set_num_threads():
    normlib.set_num_threads(5)
    assert normlib.get_num_threads() == 5
    normlib.set_num_threads(np.int64(2))
    assert normlib.get_num_threads() == 2
    normlib.set_num_threads(None)
    assert normlib.get_num_threads() == threads._default_threads


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, 10**6])
def test_bad_counts_are_refused(n):
    normlib.set_num_threads(2)
    with pytest.raises(ParameterError, match="n must be"):
        normlib.set_num_threads(n)
    assert normlib.get_num_threads() == 2


def test_threadpoolctl_limits_apply():
    normlib.set_num_threads(4)
    with threadpool_limits(limits=1, user_api="openmp"):
        assert normlib.get_num_threads() == 1
    assert normlib.get_num_threads() == 4
    with threadpool_limits(limits=3, user_api="openmp"):
        assert normlib.get_num_threads() == 3


def test_small_work_runs_on_one_thread():
    normlib.set_num_threads(4)
    assert threads.threads_for(100) == 1
    assert threads.threads_for(2 * threads.MIN_ELEMENTS) == 2
    assert threads.threads_for(10**9) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_serial_and_right():
    """libgomp's threads do not survive a fork: a child that wanted them would hang."""
    code = """
import os, signal, sys
import numpy as np
import normlib
normlib.set_num_threads(4)
x = np.random.default_rng(0).standard_normal((4096, 256)).astype(np.float32)
expected = normlib.layer_norm(x)
child = os.fork()
if child == 0:
    signal.alarm(30)
    same = (normlib.layer_norm(x) == expected).all() and normlib.get_num_threads() == 1
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_calls_from_many_python_threads(rng):
    normlib.set_num_threads(2)
    inputs = [rng.standard_normal((500, 300)).astype(np.float32) for _ in range(8)]
    expected = [normlib.layer_norm(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for actual, y in zip(pool.map(normlib.layer_norm, inputs), expected, strict=True):
                np.testing.assert_array_equal(actual, y)
