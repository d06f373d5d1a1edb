"""The memory of large outputs: reused only when nothing refers to it, bounded, traced."""

import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import normlib
from normlib import memory
from normlib._kernels import buffers

MB = 1 << 20
N = 2 * MB // 4  # floats of an output that is kept


@pytest.fixture(autouse=True)
def limit():
    memory.set_limit(0)
    memory.set_limit(64 * MB)
    yield
    memory.set_limit(None)


def output(value, n=N):
    x = np.full((n // 1024, 1024), value, np.float32)
    return normlib.layer_norm(x, bias=np.full(1024, value, np.float32))


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_of_a_dead_output_is_used_again():
    y = output(1)
    first = address(y)
    assert first % 64 == 0
    assert buffers.get_kept() == 0
    del y
    assert 2 * MB <= buffers.get_kept() < 3 * MB
    y = output(2)
    assert address(y) == first
    assert buffers.get_kept() == 0
    np.testing.assert_array_equal(y, 2)


def test_live_outputs_never_share_memory():
    alive = [output(i) for i in range(6)]
    del alive[::2]
    alive += [output(10 + i) for i in range(6)]
    for i, a in enumerate(alive):
        assert not any(np.may_share_memory(a, b) for b in alive[:i])
    for a, value in zip(alive, [1, 3, 5, 10, 11, 12, 13, 14, 15], strict=True):
        np.testing.assert_array_equal(a, value)


@pytest.mark.parametrize(
    "keep",
    [
        lambda y: y[3:4, ::2],
        lambda y: y.T,
        lambda y: y.base,
        memoryview,
        lambda y: np.frombuffer(y.data, np.uint8),
        lambda y: y.view(np.int32),
    ],
)
def test_a_view_keeps_the_memory(keep):
    y = output(1)
    view = keep(y)
    first = address(y)
    del y
    assert buffers.get_kept() == 0
    assert address(output(2)) != first
    del view
    assert buffers.get_kept() > 0


def test_copies_and_pickles_have_their_own():
    y = output(3)
    copies = [y.copy(), pickle.loads(pickle.dumps(y)), y + 0]
    y[:] = 0
    del y
    output(4)
    for copy in copies:
        np.testing.assert_array_equal(copy, 3)
    with pytest.raises(ValueError, match="own"):
        output(1).resize((1, 1), refcheck=False)


def test_only_about_the_size_is_used_again():
    first = address(output(1, 2 * N))
    assert address(output(1, N)) != first  # would waste half
    memory.set_limit(0)
    assert buffers.get_kept() == 0


def test_the_limit_holds():
    memory.set_limit(5 * MB)
    alive = [output(i) for i in range(4)]
    del alive
    assert 0 < buffers.get_kept() <= 5 * MB
    assert output(0, 8 * N).nbytes > memory.get_limit()  # too large to be kept
    assert buffers.get_kept() <= 5 * MB
    memory.set_limit(0)
    assert buffers.get_kept() == 0
    output(1)
    assert buffers.get_kept() == 0
    memory.set_limit(64 * MB)
    alive = [output(i, N // 4) for i in range(40)]
    del alive
    assert buffers.get_kept() < 17 * MB // 2  # 16 blocks of half a megabyte


def test_gradients_and_batch_norm_take_it_too(rng):
    x = rng.standard_normal((N // 512, 512)).astype(np.float32)
    _, mean, rstd = normlib.layer_norm_forward(x)
    first = address(normlib.layer_norm_backward(x, x, mean, rstd)[0])
    y, mean, var = normlib.batch_norm_forward(x)
    assert address(y) == first
    del y
    assert address(normlib.batch_norm(x, mean, var)) == first
    assert address(normlib.batch_norm_backward(x, x, mean, var)[0]) == first


def test_tracemalloc_sees_what_is_alive():
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y = output(1)
        assert 2 * MB <= tracemalloc.get_traced_memory()[0] - before < 2.5 * MB
        del y
        assert tracemalloc.get_traced_memory()[0] - before < 0.5 * MB
    finally:
        tracemalloc.stop()


def test_many_python_threads():
    wrong = []

    def work(value):
        for i in range(30):
            y = output(value + i)
            if not (y == value + i).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own():
    code = """
import os
import numpy as np, normlib
from normlib._kernels import buffers
x = np.ones((1024, 1024), np.float32)
normlib.set_num_threads(1)
normlib.layer_norm(x)
assert buffers.get_kept() > 0
child = os.fork()
y = normlib.layer_norm(x, bias=np.full(1024, 1 if child else 2, np.float32))
if not child:
    os._exit(0 if (y == 2).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (y == 1).all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("text", "limit"), [("0", 0), ("3", 3 * MB), (" ", None)])
def test_the_environment_sets_the_limit(text, limit, monkeypatch):
    monkeypatch.setenv("NORMLIB_KEEP_MB", text)
    memory.set_limit(None)
    if limit is None:
        assert 0 < memory.get_limit() <= 512 * MB
    else:
        assert memory.get_limit() == limit


@pytest.mark.parametrize("n", [-1, 1.5, "3", True])
def test_a_limit_that_is_none_is_refused(n):
    with pytest.raises(normlib.errors.ParameterError, match="n must be"):
        memory.set_limit(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLIB_KEEP_MB", "much")
        with pytest.raises(normlib.errors.ParameterError, match="NORMLIB_KEEP_MB must be"):
            memory.set_limit(None)
