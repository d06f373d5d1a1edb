"""What a normalizer saves and loads: configuration, parameters, buffers."""

import json

import numpy as np
import pytest

from normalizer_rows import rows, set_randomly
from normlib import BatchNorm, LayerNorm, NoOp
from normlib.errors import DTypeError, ParameterError, ShapeError, StateError

CLASSES = [LayerNorm, BatchNorm, NoOp]


@pytest.mark.parametrize(
    "norm",
    [
        LayerNorm(3, gain=False, eps=1e-3, dtype="float64"),
        BatchNorm(3, bias=False, momentum=None, steps=4),
        NoOp(3),
    ],
    ids=lambda norm: norm.name,
)
def test_config_survives_json(norm):
    config = json.loads(json.dumps(norm.get_config()))
    other = type(norm).from_config(config)
    assert other.get_config() == norm.get_config() == config
    assert other.parameters.keys() == norm.parameters.keys()
    assert repr(other) == repr(norm)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_config_with_other_names_is_refused(cls):
    with pytest.raises(StateError, match=f"{cls.__name__} does not take 'epss'. Did you mean"):
        cls.from_config({"features": 3, "epss": 1})
    with pytest.raises(StateError, match=f"{cls.__name__} needs a value for 'features'"):
        cls.from_config({"eps": 1})
    with pytest.raises(ParameterError, match="eps must be"):
        cls.from_config({"features": 3, "eps": -1})


def test_repr_is_the_call_that_makes_it():
    text = repr(BatchNorm(3, bias=False, momentum=None))
    assert eval(text).get_config() == BatchNorm(3, bias=False, momentum=None).get_config()


def test_state_has_parameters_and_statistics():
    assert list(LayerNorm(3).state_dict()) == ["gain", "bias"]
    names = ["gain", "bias", "running_mean", "running_var", "num_batches"]
    assert list(BatchNorm(3).state_dict()) == names
    assert NoOp(3).state_dict() == {}


def test_state_is_loaded_in_place():
    source, target = set_randomly(BatchNorm(3)), BatchNorm(3)
    source.forward(rows(5, 3))
    held = {**target.parameters, **target.buffers}
    target.load_state_dict(source.state_dict())
    for key, array in source.state_dict().items():
        np.testing.assert_array_equal(held[key], array, strict=True)
    source.forward(rows(5, 3, seed=1))
    assert target.num_batches.tolist() == [1]


def test_loaded_state_is_cast():
    norm = LayerNorm(2)
    norm.load_state_dict({"gain": [2, 3], "bias": np.array([0.5, 1.5])})
    np.testing.assert_array_equal(norm.parameters["gain"], np.float32([2, 3]), strict=True)
    np.testing.assert_array_equal(norm.parameters["bias"], np.float32([0.5, 1.5]), strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, StateError, r"missing: \['bias'\], unexpected: none"),
        ({"beta": np.zeros(3)}, StateError, r"missing: none, unexpected: \['beta'\]"),
        ({"bias": np.zeros(2)}, ShapeError, r"bias must have shape \(3,\); got \(2,\)"),
        ({"bias": np.zeros((3, 1))}, ShapeError, r"bias must have shape \(3,\)"),
        ({"bias": np.zeros(3, complex)}, DTypeError, "bias must be castable to float32"),
        ({"num_batches": np.zeros(1)}, DTypeError, "num_batches must be castable to int64"),
        ({"bias": ["a", "b", "c"]}, DTypeError, "bias must be castable"),
        ({"bias": np.ma.zeros(3)}, DTypeError, "bias must be a plain array; got a masked one"),
        ({"beta": 0, 1: 0}, StateError, r"unexpected: \[1, 'beta'\]"),
    ],
)
def test_loading_is_all_or_nothing(change, error, message):
    norm = set_randomly(BatchNorm(3))
    before = norm.state_dict()
    state = {key: array + 1 for key, array in before.items()} | change
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(error, match=message):
        norm.load_state_dict(state)
    for key, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("state", [None, 3, [("gain", np.ones(3))]])
def test_a_state_is_a_mapping(state):
    with pytest.raises(StateError, match="a state must be a mapping of names to arrays"):
        LayerNorm(3).load_state_dict(state)
