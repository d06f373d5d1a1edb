"""Parameters and state of an RNN: live, loaded, copied."""

import copy
import pickle

import numpy as np
import pytest

import normlib
from networks import (
    H,
    I,
    N,
    T,
    every_cell,
    every_norm,
    make,
)
from normlib import errors


def test_parameters_are_live():
    rnn = make("lstm", "layer")
    x = np.ones((T, N, I))
    before, _ = rnn(x)
    assert rnn.parameters["norm_c_l0.gain"] is rnn.normalizers["norm_c_l0"].parameters["gain"]
    weight = rnn.parameters["weight_ih_l0"]
    weight *= 2
    first, _ = rnn(x)
    assert not np.array_equal(before, first)
    rnn.parameters["norm_c_l0.gain"] *= 2
    assert not np.array_equal(first, rnn(x)[0])
    new = np.ones_like(weight, np.float32)
    rnn.parameters["weight_ih_l0"] = new  # copied into the live array
    assert rnn.parameters["weight_ih_l0"] is weight
    np.testing.assert_array_equal(weight, new)
    with pytest.raises(errors.ShapeError, match=r"bias_ih_l0 must have shape \(16,\); got \(1,\)"):
        rnn.parameters["bias_ih_l0"] = [0.0]
    with pytest.raises(KeyError):
        rnn.parameters["weight"] = weight
    with pytest.raises(TypeError, match="fixed"):
        del rnn.parameters["bias_ih_l0"]
    assert "norm_c_l0.gain" in repr(rnn.parameters)


def test_normalizers_cannot_be_replaced():
    rnn = normlib.RNN(2, 3, rng=0)
    with pytest.raises(TypeError, match=r"normalizers are fixed by the model .* got 'norm_c_l0'"):
        rnn.normalizers["norm_c_l0"] = normlib.NoOp(3)
    assert list(rnn.normalizers) == ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"]
    assert len(rnn.normalizers) == 3
    assert repr(rnn.normalizers).startswith("{'norm_ih_l0': LayerNorm(features=12, ")


@every_cell
@every_norm
def test_state_dict_round_trip(cell, norm):
    one = make(cell, norm, num_layers=2, bidirectional=True)
    two = make(cell, norm, num_layers=2, bidirectional=True, seed=9)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    state = one.state_dict()
    assert state.keys() >= one.parameters.keys()
    two.load_state_dict(state)
    np.testing.assert_array_equal(one(x)[0], two(x)[0])
    for array in state.values():
        array[...] = 0  # copies: neither network notices
    np.testing.assert_array_equal(one(x)[0], two(x)[0])
    assert one(x)[0].any()


def test_load_state_dict_is_all_or_nothing():
    rnn = make("lstm", "batch")
    before = rnn.state_dict()
    other = make("lstm", "batch", seed=9).state_dict()
    bad = {
        **other,
        "bias_ih_l0": np.zeros(3),
        "extra": np.zeros(1),
        "norm_hh_l0.gain": np.zeros(4 * H, complex),
    }
    del bad["weight_hh_l0"], bad["norm_ih_l0.running_mean"]
    with pytest.raises(errors.StateError) as caught:
        rnn.load_state_dict(bad)
    for part in (
        "weight_hh_l0 is missing",
        "norm_ih_l0.running_mean is missing",
        "extra is unexpected",
        "bias_ih_l0 must have shape (16,), got (3,)",
        "norm_hh_l0.gain must be float32 or float64; got complex128",
    ):
        assert part in str(caught.value)
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_is_undone_if_a_normalizer_refuses():
    class Picky(normlib.LayerNorm):
        def load_state_dict(self, state):
            if np.any(np.asarray(state["gain"]) == 13):
                raise ValueError("unlucky")
            super().load_state_dict(state)

    rnn = make("lstm", "layer", norm=Picky)
    before = rnn.state_dict()
    new = {name: array + 1 for name, array in before.items()}
    new["norm_c_l0.gain"][...] = 13
    with pytest.raises(ValueError, match="unlucky"):
        rnn.load_state_dict(new)
    for name, array in rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@every_cell
@every_norm
def test_copies_are_independent(cell, norm):
    rnn = make(cell, norm, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    expected, _ = rnn(x)
    for twin in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn)):
        np.testing.assert_array_equal(twin(x)[0], expected)
        twin.forward(x)
        for name in twin.parameters:
            twin.parameters[name] *= 2
        assert not np.array_equal(twin(x)[0], expected)
        np.testing.assert_array_equal(rnn(x)[0], expected)


def test_config_and_repr():
    rnn = normlib.RNN(I, H, cell="gru", norm=normlib.LayerNorm, reset_after=False)
    twin = normlib.RNN.from_config(rnn.get_config())
    assert twin.get_config() == rnn.get_config()
    assert repr(rnn) == (
        "RNN(3, 4, cell='gru', norm='layer', num_layers=1, bidirectional=False, "
        "nonlinearity='tanh', reset_after=False, norm_config={}, dtype='float32')"
    )
