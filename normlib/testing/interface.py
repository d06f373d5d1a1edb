"""Checks of what comes in and what comes out: arguments, shapes, dtypes, memory."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from normlib.arrays import Array
from normlib.errors import PluginError
from normlib.normalizers.base import Normalizer, as_pair
from normlib.testing.subject import Subject, close, describe, expect, expect_raises, fail, same_bits


def check_interface(subject: Subject) -> None:
    """The factory makes what it is asked for: size, dtype, parameters; methods return pairs."""
    for dtype, gain, bias in itertools.product(
        ("float32", "float64"), (True, False), (True, False)
    ):
        config = {"gain": gain, "bias": bias, "eps": 1e-3, "dtype": dtype}
        try:
            norm = subject.make(subject.features, **config)
        except Exception as error:
            fail(
                "the factory must accept features and the keywords gain, bias, eps and dtype; "
                f"called with {subject.features} and {config} it raised {describe(error)}"
            )
        expect(
            norm.features == subject.features,
            f"features must be {subject.features}; got {norm.features}",
        )
        expect(norm.dtype == dtype, f"dtype must be {dtype}; got {norm.dtype}")
        expect(
            isinstance(getattr(norm, "per_sample", None), bool),
            "the class must declare per_sample = True (a row's result depends on that row alone) "
            "or per_sample = False",
        )
        for key, array in norm.parameters.items():
            expect(
                isinstance(array, np.ndarray) and array.dtype == dtype,
                f"parameters[{key!r}] must be an ndarray of dtype {dtype}",
            )
        for key, wanted in (("gain", gain), ("bias", bias)):
            expect(
                wanted or key not in norm.parameters,
                f"with {key}=False there must be no parameters[{key!r}]; pass {key} on to "
                "super().__init__",
            )
    _expect_pairs(subject)


def _expect_pairs(subject: Subject) -> None:
    norm, x = subject.new(), subject.rows(6)
    kind = type(norm).__name__
    try:
        for method in ("forward", "forward_frozen"):
            _, cache = as_pair(getattr(norm, method)(x), method, kind, "y, cache")
            as_pair(norm.backward(x, cache), "backward", kind, "dx, grads")
    except PluginError as error:
        fail(str(error))
    except Exception:
        return  # other checks say what was asked, and where it came up


def check_shapes_and_dtypes(subject: Subject) -> None:
    """Results have the shape of x, the normalizer's dtype and memory of their own; out is used."""
    for dtype, other in (("float32", "float64"), ("float64", "float32")):
        norm = subject.trained(dtype)
        for shape in ((), (4,), (2, 3)):
            for source in (dtype, other):
                x = subject.rows(*shape, dtype=source)
                results = [("__call__", norm(x), x)]
                if x.size // subject.features >= norm.min_rows:
                    y, cache = norm.forward(x)
                    dy = subject.rows(*shape, dtype=source, seed=3)
                    dx, _ = norm.backward(dy, cache)
                    results += [("forward", y, x), ("backward", dx, dy)]
                for name, result, argument in results:
                    expect(
                        result.shape == x.shape and result.dtype == dtype,
                        f"{name} of a {dtype} normalizer, given {source} of shape {x.shape}, must "
                        f"return {dtype} of that shape; got {result.dtype} of {result.shape}",
                    )
                    expect(
                        not np.shares_memory(result, argument),
                        f"{name} must return memory of its own; got (a view of) its argument",
                    )
        _expect_own_memory(norm, subject.rows(6, dtype=dtype))
        x = subject.rows(4, dtype=dtype)
        expected = norm(x)
        for name, out in (("a new array", np.full_like(x, np.nan)), ("x itself", x)):
            result = norm(x, out=out)
            expect(result is out, f"__call__ with out={name} must return out")
            expect(
                np.array_equal(out, expected),
                f"__call__ with out={name} must write the result there; use write_out(y, out)",
            )


def _expect_own_memory(norm: Normalizer, x: Array) -> None:
    """No call returns an array of the state, or one that it has returned before."""
    _, cache = norm.forward(x)

    def backward() -> list[Array]:
        dx, grads = norm.backward(x, cache)
        return [dx, *grads.values()]

    calls: list[tuple[str, Callable[[], list[Array]]]] = [
        ("__call__", lambda: [norm(x)]),
        ("forward", lambda: [norm.forward(x)[0]]),
        ("backward", backward),
    ]
    for name, call in calls:
        held = [*norm.parameters.values(), *norm.buffers.values(), *call()]
        expect(
            all(array.flags.writeable for array in call()),
            f"{name} must return arrays that the caller may write to; got a read-only one",
        )
        expect(
            not any(np.shares_memory(new, old) for new in call() for old in held),
            f"{name} must return memory of its own; got an array that it had returned before, or "
            "one of parameters or buffers. Make a new array in each call",
        )


def check_input_untouched(subject: Subject) -> None:
    """No call changes x, mask or dy."""
    norm = subject.trained()
    mask = np.array([True, True, False, True, True])
    arrays = {"x": subject.rows(5), "mask": mask, "dy": subject.rows(5, seed=3)}
    before = {key: array.copy() for key, array in arrays.items()}

    def expect_same(method: str) -> None:
        for key, array in arrays.items():
            expect(same_bits(array, before[key]), f"{method} must not change {key}; it did")

    norm(arrays["x"])
    expect_same("__call__")
    _, cache = norm.forward(arrays["x"], mask=mask)
    expect_same("forward")
    norm.backward(arrays["dy"], cache)
    expect_same("backward")


def check_memory_layout(subject: Subject) -> None:
    """Strided, Fortran-ordered, byte-swapped, read-only arrays give what contiguous ones give."""
    norm = subject.trained()
    state = norm.state_dict()

    def layouts(array: Array) -> Iterator[tuple[str, Array]]:
        yield "Fortran-ordered", np.asfortranarray(array)
        yield "strided", np.repeat(np.repeat(array, 2, axis=0), 2, axis=-1)[::2, :, ::2]
        yield "reversed", np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1]
        yield "byte-swapped", array.astype(array.dtype.newbyteorder())
        frozen = array.copy()
        frozen.flags.writeable = False
        yield "read-only", frozen

    def run(x: Array, dy: Array) -> dict[str, Array]:
        norm.load_state_dict(state)
        results = {"__call__": norm(x)}
        results["forward"], cache = norm.forward(x)
        results["backward"], grads = norm.backward(dy, cache)
        return results | {f"backward, for {key!r}": array for key, array in grads.items()}

    x, dy = subject.rows(2, 3), subject.rows(2, 3, seed=3)
    expected = run(x, dy)
    for (name, x_variant), (_, dy_variant) in zip(layouts(x), layouts(dy), strict=True):
        try:
            results = run(x_variant, dy_variant)
        except Exception as error:
            fail(f"{name} input must be accepted; it raised {describe(error)}")
        for method, result in results.items():
            expect(
                close(result, expected[method]),
                f"{name} input must give the result of {method} that contiguous input gives. "
                "check_input and check_gradient return contiguous arrays",
            )


def check_empty_batch(subject: Subject) -> None:
    """A batch of no rows gives no rows; forward may refuse it only if min_rows says so."""
    norm = subject.trained()
    empty = subject.rows(0)
    y = norm(empty)
    expect(y.shape == empty.shape, f"inference must return shape {empty.shape}; got {y.shape}")
    if norm.min_rows > 0:
        expect_raises(ValueError, lambda: norm.forward(empty), "forward of no rows")
        return
    y, cache = norm.forward(empty)
    expect(y.shape == empty.shape, f"forward must return shape {empty.shape}; got {y.shape}")
    dx, grads = norm.backward(empty, cache)
    expect(dx.shape == empty.shape, f"dx must have shape {empty.shape}; got {dx.shape}")
    for key, gradient in grads.items():
        expect(
            not np.any(gradient),
            f"the gradient of {key!r} over no rows must be zeros; got {gradient}",
        )
