"""Normalizers of one's own in an RNN: how they are called, and what they may not return."""

import numpy as np
import pytest

import normlib
from networks import H, I, N, T, every_cell, make
from normlib import errors


class Recorder(normlib.NoOp):
    """Writes down which steps it is called for, and with how many rows."""

    min_rows = 2
    log: list

    def __call__(self, x, *, step=0, out=None):
        self.log.append(("infer", step, len(x)))
        return super().__call__(x, step=step, out=out)

    def forward(self, x, *, step=0, mask=None):
        self.log.append(("forward", step, len(x)))
        return super().forward(x, step=step, mask=mask)

    def forward_frozen(self, x, *, step=0):
        self.log.append(("frozen", step, len(x)))
        return super().forward(x, step=step)


def recorded(run, **options):
    log = []

    def factory(features, **config):
        normalizer = Recorder(features, **config)
        normalizer.log = log
        return normalizer

    rnn = normlib.RNN(I, H, cell="rnn", norm=factory, **options)
    run(rnn)
    return log


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_step_calls_the_normalizer_with_the_valid_rows(bidirectional):
    x = np.zeros((4, 3, I))
    log = recorded(lambda rnn: rnn.forward(x, None, [1, 3, 2]), bidirectional=bidirectional)
    calls = [("forward", 0, 3), ("forward", 1, 2), ("frozen", 2, 1)]
    assert [entry for entry in log if entry[0] != "infer"] == calls * (1 + bidirectional)
    log = recorded(lambda rnn: rnn.step(x[0], step=7))
    assert log[0] == ("infer", 7, 3)


class Failing(normlib.BatchNorm):
    """Fails at one step."""

    def forward(self, x, *, step=0, mask=None):
        result = super().forward(x, step=step, mask=mask)
        if step == 3:
            raise RuntimeError("no")
        return result

    def backward(self, dy, cache):
        raise RuntimeError("no way back")


@every_cell
def test_an_error_names_the_step_and_leaves_the_state(cell):
    rnn = make(cell, "batch", norm=Failing, num_layers=2, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    before = rnn.state_dict()
    with pytest.raises(RuntimeError, match="no") as caught:
        rnn.forward(x)
    assert caught.value.__notes__ == ["at time step 3 of layer 0"]
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    y, _, cache = rnn.forward(x[:3])
    with pytest.raises(RuntimeError) as caught:
        rnn.backward(y, cache)
    assert caught.value.__notes__ == ["in backward, at time step 2 of layer 1, reverse"]


def test_a_keyboard_interrupt_leaves_the_state():
    class Interrupted(normlib.BatchNorm):
        def forward(self, x, *, step=0, mask=None):
            if step == 2:
                raise KeyboardInterrupt
            return super().forward(x, step=step, mask=mask)

    rnn = make("gru", "batch", norm=Interrupted)
    before = rnn.state_dict()
    with pytest.raises(KeyboardInterrupt):
        rnn.forward(np.random.default_rng(0).standard_normal((T, N, I)))
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_results_of_a_wrong_shape_or_dtype_are_refused():
    class Short(normlib.LayerNorm):
        def __call__(self, x, *, step=0, out=None):
            return super().__call__(x, step=step)[:, :-1]

        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return dx.astype(np.float16), grads

    rnn = make("lstm", "layer", norm=Short)
    with pytest.raises(errors.PluginError, match=r"norm_ih_l0 must return .*\(4, 16\).*\(4, 15\)"):
        rnn(np.zeros((T, N, I)))
    y, _, cache = rnn.forward(np.zeros((T, N, I)))
    with pytest.raises(errors.PluginError, match=r"norm_c_l0 must return .* float64.* float16"):
        rnn.backward(y, cache)
    with pytest.raises(errors.PluginError, match="normalizers of 16 features and dtype float32"):
        normlib.RNN(I, H, norm=lambda features, **config: normlib.LayerNorm(2, **config))
