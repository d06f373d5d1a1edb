"""The conformance kit: sound normalizers pass, and for every check a broken one is caught."""

import functools

import numpy as np
import pytest

import normlib
from broken_normalizers import (
    BROKEN,
    DoublesGradient,
    HoldsLock,
    KnowsTwoSteps,
    TakesNoKeywords,
)
from normlib import testing
from normlib.testing import CHECKS, ConformanceError, check_normalizer
from python_norm import RMSNorm

# ---- sound normalizers ----------------------------------------------------------------------


class Temperature(normlib.Normalizer):
    """One learned number, not of shape (F,), and an argument of its own."""

    per_sample = True

    def __init__(self, features, *, start=2.0, **config):
        super().__init__(features, **{**config, "gain": False, "bias": False})
        self.start = start
        self.parameters["temperature"] = np.full((1,), start, self.dtype)

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        return x * self.parameters["temperature"], x

    def backward(self, dy, cache):
        dy = self.check_gradient(dy, cache.shape)
        total = np.sum(dy * cache).reshape(1).astype(self.dtype)
        return dy * self.parameters["temperature"], {"temperature": total}

    def get_config(self):
        return {**super().get_config(), "start": self.start}


SOUND = {
    "layer": "layer",
    "batch": "batch",
    "noop": "noop",
    "none": None,
    "class": normlib.LayerNorm,
    "steps": functools.partial(normlib.create, "batch", steps=2),
    "average": lambda features, **config: normlib.BatchNorm(features, momentum=None, **config),
    "no momentum": lambda features, **config: normlib.BatchNorm(features, momentum=0, **config),
    "custom": RMSNorm,
    "custom parameter": Temperature,
}


@pytest.mark.parametrize("factory", SOUND.values(), ids=SOUND)
def test_a_sound_normalizer_passes_every_check(factory):
    assert check_normalizer(factory) == list(CHECKS)


@pytest.mark.parametrize("features", [1, 2, 5, 33])
def test_any_number_of_features_will_do(features):
    # One feature is not normalized by its row but erased: y is the bias, and dx is 0.
    for name in ("layer", "batch", "noop", "rms"):
        assert check_normalizer(name, features=features) == list(CHECKS)


@pytest.mark.parametrize("name", ["rms", "group", "instance"])
def test_the_family_passes(name):
    assert check_normalizer(name) == list(CHECKS)
    assert check_normalizer(name, features=16) == list(CHECKS)


# ---- broken normalizers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    BROKEN,
    ids=[f"{name}-{factory.__name__.strip('<>')}" for name, factory, _ in BROKEN],
)
def test_a_broken_normalizer_is_caught_by_name(name, factory, message):
    others = CHECKS.keys() - {"interface", name}
    with pytest.raises(ConformanceError, match=message) as caught:
        check_normalizer(factory, skip=others)
    assert set(caught.value.failures) == {name}
    assert f"- {name}: " in str(caught.value)


def test_every_check_has_a_broken_normalizer():
    assert {name for name, _, _ in BROKEN} == set(CHECKS)


# ---- the report -----------------------------------------------------------------------------


def test_all_failures_are_reported_together():
    class TwoFaults(DoublesGradient, HoldsLock):
        pass

    others = CHECKS.keys() - {"interface", "gradients", "copies", "refusals"}
    with pytest.raises(ConformanceError) as caught:
        check_normalizer(TwoFaults, skip=others)
    assert list(caught.value.failures) == ["gradients", "copies"]
    assert isinstance(caught.value, AssertionError)
    assert str(caught.value).startswith("TwoFaults fails 2 of 4 checks\n- gradients: ")


def test_a_mistake_of_the_normalizer_is_located():
    with pytest.raises(
        ConformanceError, match=r"IndexError: step 2 .*\(broken_normalizers.py, line \d+"
    ):
        check_normalizer(KnowsTwoSteps)


def test_a_normalizer_that_exits_fails():
    class Exits(normlib.LayerNorm):
        def forward(self, x, *, step=0, mask=None):
            raise SystemExit("no licence")

    with pytest.raises(ConformanceError, match=r"SystemExit: no licence \(test_testing.py, line"):
        check_normalizer(Exits)


def test_nothing_else_runs_when_the_interface_is_wrong():
    with pytest.raises(ConformanceError, match="cannot run before interface passes") as caught:
        check_normalizer(TakesNoKeywords)
    assert list(caught.value.failures) == ["interface"]


def test_skipped_checks_are_not_reported_as_passed():
    passed = check_normalizer(DoublesGradient, skip=["gradients", "in_rnn", "in_gru", "in_lstm"])
    assert passed == [
        name for name in CHECKS if name not in ("gradients", "in_rnn", "in_gru", "in_lstm")
    ]


def test_an_unknown_check_cannot_be_skipped():
    with pytest.raises(ValueError, match=r"unknown checks \['gradient'\]; there are \['interface'"):
        check_normalizer("layer", skip=["gradient"])


def test_the_docstring_lists_the_checks():
    text = " ".join(testing.check_normalizer.__doc__.split())
    assert f"they run: {', '.join(CHECKS)}." in text
    for check in CHECKS.values():
        assert check.__doc__
