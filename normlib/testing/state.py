"""Checks of configuration and state: saved, loaded, copied."""

import copy
import inspect
import json
import pickle

from normlib.testing.subject import Subject, describe, expect, fail, fingerprint, same_bits


def check_config_round_trip(subject: Subject) -> None:
    """get_config is JSON with every argument of __init__; from_config makes an equal normalizer."""
    norm = subject.new("float64", bias=False, eps=0.5)
    config = norm.get_config()
    try:
        same = json.loads(json.dumps(config)) == config
    except TypeError as error:
        fail(f"get_config must return what JSON can hold; {error}")
    expect(same, f"get_config must come back from JSON as it was; got {config}")
    for name, parameter in inspect.signature(type(norm)).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            expect(
                name in config,
                f"get_config must have every argument of __init__; {name!r} is missing. "
                f"Return {{**super().get_config(), {name!r}: ...}}",
            )
    other = type(norm).from_config(config)
    expect(
        other.get_config() == config,
        f"from_config must make a normalizer of the same config {config}; got {other.get_config()}",
    )
    other.load_state_dict(norm.state_dict())
    x = subject.rows(5)
    expect(
        same_bits(other(x), norm(x)) and same_bits(other.forward(x)[0], norm.forward(x)[0]),
        "a normalizer made from the config and state of another must give the same results; it "
        "does not. Something that matters is in neither",
    )


def check_state_round_trip(subject: Subject) -> None:
    """state_dict returns copies of all that matters; load_state_dict sets it in place."""
    norm, other = subject.trained(), subject.new()
    x = subject.rows(5)
    state = norm.state_dict()
    missing = sorted(norm.parameters.keys() - state.keys())
    expect(not missing, f"state_dict must have all parameters; missing: {missing}")
    before = fingerprint(norm, x)
    for array in norm.state_dict().values():
        array[...] = 7
    expect(fingerprint(norm, x) == before, "state_dict must return copies; got the arrays")

    held = dict(other.parameters)
    for array in held.values():
        array += 1
    other.load_state_dict(state)
    for key, array in held.items():
        expect(
            array is other.parameters[key] and same_bits(array, norm.parameters[key]),
            f"load_state_dict must write to parameters[{key!r}] in place; it does not",
        )
    expect(
        fingerprint(other, x) == before
        and same_bits(other.forward(x)[0], norm.forward(x)[0])
        and fingerprint(other, x) == fingerprint(norm, x),
        "after load_state_dict results must be those of the normalizer whose state it is; they are "
        "not. What is not learned belongs in buffers",
    )


def check_copies(subject: Subject) -> None:
    """Pickling and copy.deepcopy make equal, independent normalizers."""
    norm = subject.trained()
    x = subject.rows(5)
    before = fingerprint(norm, x)
    for name, duplicate in (
        ("pickle", lambda: pickle.loads(pickle.dumps(norm))),
        ("copy.deepcopy", lambda: copy.deepcopy(norm)),
    ):
        try:
            other = duplicate()
        except Exception as error:
            fail(f"{name} must work; it raised {describe(error)}")
        expect(
            type(other) is type(norm)
            and other.get_config() == norm.get_config()
            and fingerprint(other, x) == before,
            f"{name} must make an equal normalizer; its config or state differs",
        )
        for array in other.parameters.values():
            array += 1
        other.forward(x)
        expect(
            fingerprint(norm, x) == before,
            f"{name} must make an independent normalizer; changing it changed the original",
        )
