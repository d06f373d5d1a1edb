"""The paths of plain arguments: they take what is plain, and give the bits of the checked path."""

import numpy as np
import pytest

import normlib
from normlib import _kernels

PLAIN = {
    "layer_norm": ("layer_norm_plain",),
    "layer_norm_backward": ("layer_norm_backward_plain",),
    "batch_norm": ("batch_norm_plain", "batch_norm_forward_plain"),
    "batch_norm_backward": ("batch_norm_backward_plain",),
}


@pytest.fixture
def taken(monkeypatch):
    """Whether each plain path was asked; call close() to make all of them decline."""

    class Taken(list):
        closed = False

        def close(self):
            self.closed = True

    taken = Taken()

    def watch(function):
        def watched(*args):
            result = None if taken.closed else function(*args)
            taken.append(result is not None)
            return result

        return watched

    for module, names in PLAIN.items():
        kernel = getattr(_kernels, module)
        for name in names:
            monkeypatch.setattr(kernel, name, watch(getattr(kernel, name)))
    return taken


def calls(x, dy, gain, bias, axis):
    """Each function's call; layer norm knows the last axis alone."""
    if axis in (-1, x.ndim - 1):
        n = x.shape[-1]
        gain_n, bias_n = gain[:n], bias[:n]
        yield lambda: normlib.layer_norm(x, gain_n, bias_n)
        yield lambda: normlib.layer_norm(x, gain_n, out=np.empty_like(x))
        yield lambda: normlib.layer_norm_forward(x, None, bias_n)
        _, mean, rstd = normlib.layer_norm_forward(x)
        yield lambda: normlib.layer_norm_backward(dy, x, mean, rstd, gain_n)
        yield lambda: normlib.layer_norm_backward(dy, x, mean, rstd)
    n = x.shape[axis]
    gain_c, bias_c = gain[:n], bias[:n]
    yield lambda: normlib.batch_norm_forward(x, gain_c, bias_c, channel_axis=axis)
    yield lambda: normlib.batch_norm_forward(x, channel_axis=axis, out=np.empty_like(x))
    _, mean_c, var = normlib.batch_norm_forward(x, channel_axis=axis)
    yield lambda: normlib.batch_norm(x, mean_c, var, gain_c, channel_axis=axis)
    yield lambda: normlib.batch_norm(x, mean_c, var, channel_axis=axis, out=x.copy())
    mean_f, var_f = mean_c.astype(np.float32), var.astype(np.float32)
    yield lambda: normlib.batch_norm(x, mean_f, var_f, gain_c, bias_c, channel_axis=axis)
    if x.dtype == np.float32:
        yield lambda: normlib.batch_norm_backward(dy, x, mean_c, var, gain_c, channel_axis=axis)
        yield lambda: normlib.batch_norm_backward(dy, x, mean_c, var, channel_axis=axis)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9, 70), -1), ((1, 5, 33), -1), ((4, 6, 3, 5), 1), ((7, 1), 1), ((8, 3), 0), ((40,), 0)],
)
def test_plain_arguments_give_the_bits_of_the_checked_path(
    cpu_level, n_threads, taken, shape, axis, dtype, rng
):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    gain, bias = rng.standard_normal((2, 70)).astype(dtype)
    if x.shape[axis] == x.size:  # one value a channel
        x, dy = np.stack([x, dy]), np.stack([dy, x])
        axis = 1
    for call in calls(x, dy, gain, bias, axis):
        taken.clear()
        taken.closed = False
        plain = call()
        assert taken == [True]
        taken.close()
        checked = call()
        assert taken == [True, False]
        if isinstance(plain, np.ndarray):
            plain, checked = (plain,), (checked,)
        for a, b in zip(plain, checked, strict=True):
            if b is None:
                assert a is None
                continue
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_array_equal(a, b)


def test_what_is_not_plain_is_left_to_the_checked_path(taken, rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)
    gain = np.ones(4, np.float32)
    _, mean, rstd = normlib.layer_norm_forward(x)
    mean_c, var = mean[:4], rstd[:4] ** 2
    shared = np.ones(24, np.float32)
    over = np.ones((6, 4))
    declined = [
        lambda: normlib.layer_norm(x.astype(np.float16).astype(">f4"), gain),
        lambda: normlib.layer_norm(x, gain, eps=0),
        lambda: normlib.layer_norm(x, gain.astype(float)),
        lambda: normlib.layer_norm(x, shared[2:6], out=shared.reshape(6, 4)),
        lambda: normlib.layer_norm_forward(x[::2], gain),
        lambda: normlib.layer_norm_backward(x, x, mean.astype(np.float32), rstd),
        lambda: normlib.layer_norm_backward(x.astype(float), x, mean, rstd),
        lambda: normlib.batch_norm(x, list(mean_c), var),
        lambda: normlib.batch_norm(x, mean_c, var, channel_axis=np.int64(1)),
        lambda: normlib.batch_norm(x.astype(float), mean_c, over[0], out=over),
        lambda: normlib.batch_norm_forward(x.T, channel_axis=0),
        lambda: normlib.batch_norm_backward(x.astype(float), x.astype(float), mean_c, var),
    ]
    for call in declined:
        taken.clear()
        call()
        assert taken == [False], call


@pytest.mark.parametrize(
    "call",
    [
        lambda x, c: normlib.batch_norm(x, c, -c),
        lambda x, c: normlib.batch_norm(x, c, c, channel_axis=2),
        lambda x, c: normlib.batch_norm(x, c[:2], c),
        lambda x, c: normlib.batch_norm_forward(x[:1]),
        lambda x, c: normlib.batch_norm_forward(x, eps=-1.0),
        lambda x, c: normlib.batch_norm_backward(x, x, c, -c),
        lambda x, c: normlib.batch_norm_backward(x[:1], x, c, c),
        lambda x, c: normlib.layer_norm_forward(x, out=x[:1]),
        lambda x, c: normlib.layer_norm_backward(x, x, c, c),
    ],
)
def test_errors_are_those_of_the_checked_path(call, taken):
    x, c = np.ones((6, 4), np.float32), np.ones(4)
    messages = []
    for _ in range(2):
        with pytest.raises(normlib.errors.NormlibError) as caught:
            call(x, c)
        messages.append(str(caught.value))
        taken.close()
    assert messages[0] == messages[1]
