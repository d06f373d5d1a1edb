"""Checks of wrong calls: refused, and without a trace in the state."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from normlib.normalizers import Normalizer
from normlib.testing.subject import Subject, expect, expect_raises, fingerprint


def check_refusals(subject: Subject) -> None:
    """Wrong dtypes raise TypeError; wrong shapes, masks, steps and states raise ValueError."""
    for what, error, call in _mistakes(subject.trained(), subject):
        expect_raises(error, call, what)
    norm = subject.trained()
    _, cache = norm.forward(subject.rows(4))
    expect_raises(
        ValueError,
        lambda: norm.backward(subject.rows(1), cache),
        "backward of a dy of another shape than y",
    )


def check_state_after_error(subject: Subject) -> None:
    """A call that raises leaves the state as it was."""
    norm = subject.trained()
    probe = subject.rows(3)
    mistakes = _mistakes(norm, subject)
    if norm.min_rows:
        few = subject.rows(norm.min_rows - 1)
        mistakes.append(_Mistake("forward of too few rows", ValueError, partial(norm.forward, few)))
    for what, _, call in mistakes:
        before = fingerprint(norm, probe)
        with suppress(Exception):
            call()
            continue  # whether it should have raised is for check_refusals
        expect(
            fingerprint(norm, probe) == before,
            f"{what} raised, and changed the state before that. Check first, change last",
        )


class _Mistake(NamedTuple):
    what: str
    error: type[Exception]
    call: Callable[[], object]


def _mistakes(norm: Normalizer, subject: Subject) -> list[_Mistake]:
    """List calls that must raise."""
    mistakes = []

    def add(
        what: str, error: type[Exception], call: Callable[..., object], *args: Any, **kwargs: Any
    ) -> None:
        mistakes.append(_Mistake(what, error, partial(call, *args, **kwargs)))

    x = subject.rows(4)
    for name, method in (("__call__", norm.__call__), ("forward", norm.forward)):
        for dtype in ("int64", "bool", "complex128", "object"):
            add(f"{name} of {dtype}", TypeError, method, x.astype(dtype))
        for bad in (x[:, 1:], np.tile(x, 2), np.array(1.0)):
            add(f"{name} of shape {bad.shape}", ValueError, method, bad)
        for step in (-1, True):
            add(f"{name} with step={step}", ValueError, method, x, step=step)
    add("out of another shape", ValueError, norm, x, out=np.empty_like(x[:2]))
    add("out of another dtype", TypeError, norm, x, out=np.empty(x.shape, "float32"))
    add("a mask of another shape", ValueError, norm.forward, x, mask=np.ones(3, np.bool_))
    add("a mask of float64", TypeError, norm.forward, x, mask=np.ones(4))

    load = norm.load_state_dict
    state = {key: array + 1 for key, array in norm.state_dict().items()}
    add("load_state_dict with an unexpected entry", ValueError, load, {**state, "no such": x})
    if state:
        *rest, last = state
        wrong = np.stack([state[last], state[last]])
        add("load_state_dict with a wrong shape", ValueError, load, {**state, last: wrong})
        add("load_state_dict with a missing entry", ValueError, load, {k: state[k] for k in rest})
    return mistakes
