"""Checks of gradients, against central differences in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from normlib.arrays import Array
from normlib.normalizers import Normalizer
from normlib.testing.subject import Subject, describe, expect, fail, fingerprint, same_bits

# Central differences in float64. Near eps, y bends on a scale of sqrt(eps) = 3e-3, which makes the
# error (1e-6 / 3e-3)**2 = 1e-7 by truncation; that by rounding is less.
DIFFERENCE = 1e-6
_GRADIENT_TOLERANCE = 1e-6


def check_gradients(subject: Subject) -> None:
    """The gradients of x and of every parameter agree with central differences."""
    norm = subject.trained()
    check_gradients_of(norm, norm.forward, subject.rows(2, 3), "")
    if not norm.per_sample:
        mask = np.array([[True, False, True], [True, True, False]])
        x = subject.rows(2, 3)
        check_gradients_of(norm, lambda x: norm.forward(x, mask=mask), x, ", with a mask,")


def check_gradient_names(subject: Subject) -> None:
    """Every parameter, and nothing else, gets a gradient, of its shape and dtype."""
    for dtype, gain, bias in itertools.product(
        ("float32", "float64"), (True, False), (True, False)
    ):
        norm = subject.new(dtype, gain=gain, bias=bias)
        _, cache = norm.forward(subject.rows(4, dtype=dtype))
        _, grads = norm.backward(subject.rows(4, dtype=dtype, seed=3), cache)
        expect(
            grads.keys() == norm.parameters.keys(),
            f"with gain={gain} and bias={bias} backward must return gradients for "
            f"{sorted(norm.parameters)}; got {sorted(grads)}",
        )
        for key, array in norm.parameters.items():
            got = grads[key]
            expect(
                got.shape == array.shape and got.dtype == array.dtype,
                f"the gradient of {key!r} must have shape {array.shape} and dtype {array.dtype}; "
                f"got {got.shape} and {got.dtype}",
            )


def check_pure_backward(subject: Subject) -> None:
    """Method backward is a pure function of dy and the cache, and the cache does not hold y."""
    norm = subject.trained()
    probe, dy = subject.rows(3, seed=5), subject.rows(5, seed=3)
    y, cache = norm.forward(subject.rows(5))
    before = fingerprint(norm, probe)
    dx, grads = norm.backward(dy, cache)
    first = {"dx": dx.copy()} | {key: array.copy() for key, array in grads.items()}
    expect(fingerprint(norm, probe) == before, "backward must not change the state; it did")
    # Neither what it returned nor y is needed any more, so a caller may write to them.
    for array in (dx, *grads.values(), y):
        array[...] = np.nan
    norm.forward(subject.rows(5, seed=6))
    try:
        dx, grads = norm.backward(dy, cache)
    except Exception as error:
        fail(f"backward must leave the cache for a second call; that raised {describe(error)}")
    for key, array in {"dx": dx, **grads}.items():
        expect(
            same_bits(array, first[key]),
            f"a second call of backward must give the same {key}, also after another forward, and "
            "with y and the first results overwritten; it does not. Keep what backward needs in "
            "the cache, leave that alone, and let it hold neither y nor what backward returns",
        )


def check_gradients_of(
    norm: Normalizer,
    forward: Callable[[Array], tuple[Array, Any]],
    x: Array,
    how: str,
) -> None:
    """Compare backward after `forward` with central differences, for x and every parameter."""
    weights = np.random.default_rng(2).normal(size=x.shape)
    state = norm.state_dict()

    def loss() -> float:
        y, _ = forward(x)
        value = float(np.sum(y * weights))
        # If y depends on the buffers, each evaluation has to find the same ones.
        for key, array in norm.buffers.items():
            array[...] = state[key]
        return value

    _, cache = forward(x.copy())
    dx, grads = norm.backward(weights, cache)
    for key, array in norm.buffers.items():
        array[...] = state[key]
    expect_gradient(f"x{how}", dx, _numeric_gradient(loss, x))
    for key, array in norm.parameters.items():
        if key in grads:
            expect_gradient(f"{key!r}{how}", grads[key], _numeric_gradient(loss, array))


def _numeric_gradient(loss: Callable[[], float], array: Array) -> Array:
    """Differentiate `loss`, which reads `array`, by central differences."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + DIFFERENCE
        above = loss()
        array[index] = kept - DIFFERENCE
        gradient[index] = (above - loss()) / (2 * DIFFERENCE)
        array[index] = kept
    return gradient


def expect_gradient(what: str, got: Array, expected: Array) -> None:
    expect(
        np.shape(got) == expected.shape,
        f"the gradient of {what} must have shape {expected.shape}; got {np.shape(got)}",
    )
    error = np.abs(got - expected)
    if not error.size or np.all(error <= _GRADIENT_TOLERANCE * max(1.0, np.abs(expected).max())):
        return
    worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
    index = tuple(int(i) for i in worst)
    fail(
        f"the gradient of {what} is wrong: at {index} central differences give "
        f"{expected[index]:.9g}, backward gave {got[index]:.9g}"
    )
