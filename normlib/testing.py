"""The conformance kit: does a normalizer keep the contract of `normlib.Normalizer`?

Put one line into the tests of a package that defines a normalizer::

    normlib.testing.check_normalizer(MyNorm)

Design
------
Every check is one function ``check_<name>(subject)`` whose docstring is the rule. It raises
`RuleError`, or whatever the normalizer raised, and knows nothing of the other checks;
`check_normalizer` runs them all and reports all failures together.
"""

import copy
import inspect
import itertools
import json
import pickle
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array
from normlib.normalizers import Normalizer
from normlib.registry import NormalizerFactory, NormalizerLike, resolve
from normlib.rnn import RNN

__all__ = ["CHECKS", "ConformanceError", "RuleError", "check_normalizer"]

# Central differences in float64. Near eps, y bends on a scale of sqrt(eps) = 3e-3, which makes the
# error (1e-6 / 3e-3)**2 = 1e-7 by truncation; that by rounding is less.
_DIFFERENCE = 1e-6
_GRADIENT_TOLERANCE = 1e-6


class RuleError(AssertionError):
    """One rule of the contract is broken."""


class ConformanceError(AssertionError):
    """A normalizer does not keep the contract.

    Attributes
    ----------
    failures : dict of str to str
        For every failed check its name and what was wrong.
    """

    def __init__(self, message: str, failures: dict[str, str]) -> None:
        super().__init__(message)
        self.failures = failures


def check_normalizer(
    factory: NormalizerLike, *, features: int = 8, skip: Collection[str] = ()
) -> list[str]:
    """Check that a normalizer keeps the contract of `normlib.Normalizer`.

    Parameters
    ----------
    factory : str, class or callable
        A registered name, a class derived from `Normalizer`, or a factory
        ``f(features, **config)``. It is called with the keywords ``gain``, ``bias``, ``eps`` and
        ``dtype``.
    features : int, default 8
        F, the size of the last axis. Take another if the normalizer cannot have 8 features; in the
        recurrent cells it gets up to four times as many.
    skip : collection of str, default ()
        Names of checks to leave out. They are not in the list returned.

    Returns
    -------
    passed : list of str
        The names of the checks that passed, which is all that were not skipped.

    Raises
    ------
    ConformanceError
        If any check fails (an ``AssertionError``). Its message names every failed check, with what
        was expected, what came instead and what to do; ``failures`` has the same as a dictionary.
    ValueError
        If `skip` names a check that does not exist.

    Notes
    -----
    The checks, in the order in which they run: interface, shapes_and_dtypes, input_untouched,
    memory_layout, empty_batch, inference, declared_traits, mask, few_rows, gradients,
    gradient_names, pure_backward, config_round_trip, state_round_trip, copies, refusals,
    state_after_error, in_rnn, in_gru, in_lstm. If the first fails, the others cannot run.

    Gradients are compared with central differences in float64, so ``forward`` must be smooth at
    random points.

    Examples
    --------
    >>> import normlib
    >>> from normlib.testing import check_normalizer
    >>> len(check_normalizer("layer"))
    20
    >>> class Doubled(normlib.LayerNorm):
    ...     def backward(self, dy, cache):
    ...         dx, grads = super().backward(dy, cache)
    ...         return 2 * dx, grads
    >>> rest = [name for name in normlib.testing.CHECKS if name not in ("interface", "gradients")]
    >>> check_normalizer(Doubled, skip=rest)
    Traceback (most recent call last):
        ...
    normlib.testing.ConformanceError: Doubled fails 1 of 2 checks
    - gradients: ...
    """
    unknown = sorted(set(skip) - CHECKS.keys())
    if unknown:
        raise ValueError(f"skip names unknown checks {unknown}; there are {list(CHECKS)}")
    subject = _Subject(resolve(factory), features)
    chosen = {name: check for name, check in CHECKS.items() if name not in skip}
    failures: dict[str, str] = {}
    for name, check in chosen.items():
        try:
            check(subject)
        except RuleError as error:
            failures[name] = str(error)
        except Exception as error:
            failures[name] = _describe(error)
        if "interface" in failures:
            break
    if failures:
        label = getattr(factory, "__name__", None) or repr(factory)
        lines = [f"{label} fails {len(failures)} of {len(chosen)} checks"]
        lines += [f"- {name}: {message}" for name, message in failures.items()]
        if "interface" in failures:
            lines.append("The other checks cannot run before interface passes.")
        raise ConformanceError("\n".join(lines), failures)
    return list(chosen)


# ---- helpers --------------------------------------------------------------------------------


class _Subject(NamedTuple):
    make: NormalizerFactory
    features: int

    def new(self, dtype: str = "float64", **config: Any) -> Normalizer:
        """Make a normalizer whose parameters are away from 1 and 0, where mistakes hide."""
        norm = self.make(self.features, dtype=dtype, **config)
        rng = np.random.default_rng(1)
        for array in norm.parameters.values():
            array += rng.uniform(-0.3, 0.3, array.shape).astype(array.dtype)
        return norm

    def trained(self, dtype: str = "float64") -> Normalizer:
        """Make a normalizer whose buffers, if it has any, are away from their initial values."""
        norm = self.new(dtype)
        for seed in (11, 12):
            norm.forward(self.rows(6, dtype=dtype, seed=seed))
        return norm

    def rows(self, *shape: int, dtype: str = "float64", seed: int = 0) -> Array:
        """Make random values of shape (*shape, F)."""
        rng = np.random.default_rng(seed)
        return rng.normal(0.5, 1.5, (*shape, self.features)).astype(dtype)


def _fail(message: str) -> NoReturn:
    raise RuleError(message)


def _expect(condition: object, message: str) -> None:
    if not condition:
        _fail(message)


def _expect_raises(error: type[Exception], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except error:
        return
    except Exception as other:
        _fail(f"{what} must raise {error.__name__}; it raised {_describe(other)}")
    _fail(f"{what} must raise {error.__name__}; it was accepted")


def _describe(error: Exception) -> str:
    """Name the error and the innermost line, NumPy's own aside, where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [frame for frame in frames if "numpy" not in Path(frame.filename).parts][-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{type(error).__name__}: {error} ({place})"


def _same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _close(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True))


def _fingerprint(norm: Normalizer, x: Array) -> dict[str, bytes]:
    """Tell states apart, by what is saved and by what inference makes of it."""
    arrays = {**norm.state_dict(), "inference": norm(x)}
    return {key: array.tobytes() for key, array in arrays.items()}


def _numeric_gradient(loss: Callable[[], float], array: Array) -> Array:
    """Differentiate `loss`, which reads `array`, by central differences."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + _DIFFERENCE
        above = loss()
        array[index] = kept - _DIFFERENCE
        gradient[index] = (above - loss()) / (2 * _DIFFERENCE)
        array[index] = kept
    return gradient


def _expect_gradient(what: str, got: Array, expected: Array) -> None:
    _expect(
        np.shape(got) == expected.shape,
        f"the gradient of {what} must have shape {expected.shape}; got {np.shape(got)}",
    )
    error = np.abs(got - expected)
    if not error.size or np.all(error <= _GRADIENT_TOLERANCE * max(1.0, np.abs(expected).max())):
        return
    worst = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
    index = tuple(int(i) for i in worst)
    _fail(
        f"the gradient of {what} is wrong: at {index} central differences give "
        f"{expected[index]:.9g}, backward gave {got[index]:.9g}"
    )


def _check_gradients_of(
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
    _expect_gradient(f"x{how}", dx, _numeric_gradient(loss, x))
    for key, array in norm.parameters.items():
        if key in grads:
            _expect_gradient(f"{key!r}{how}", grads[key], _numeric_gradient(loss, array))


# ---- the checks -----------------------------------------------------------------------------


def check_interface(subject: _Subject) -> None:
    """The factory makes a normalizer of the size and dtype asked for, with the parameters asked."""
    for dtype, gain, bias in itertools.product(
        ("float32", "float64"), (True, False), (True, False)
    ):
        config = {"gain": gain, "bias": bias, "eps": 1e-3, "dtype": dtype}
        try:
            norm = subject.make(subject.features, **config)
        except Exception as error:
            _fail(
                "the factory must accept features and the keywords gain, bias, eps and dtype; "
                f"called with {subject.features} and {config} it raised {_describe(error)}"
            )
        _expect(
            norm.features == subject.features,
            f"features must be {subject.features}; got {norm.features}",
        )
        _expect(norm.dtype == dtype, f"dtype must be {dtype}; got {norm.dtype}")
        _expect(
            isinstance(getattr(norm, "per_sample", None), bool),
            "the class must declare per_sample = True (a row's result depends on that row alone) "
            "or per_sample = False",
        )
        for key, array in norm.parameters.items():
            _expect(
                isinstance(array, np.ndarray) and array.dtype == dtype,
                f"parameters[{key!r}] must be an ndarray of dtype {dtype}",
            )
        for key, wanted in (("gain", gain), ("bias", bias)):
            _expect(
                wanted or key not in norm.parameters,
                f"with {key}=False there must be no parameters[{key!r}]; pass {key} on to "
                "super().__init__",
            )


def check_shapes_and_dtypes(subject: _Subject) -> None:
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
                    _expect(
                        result.shape == x.shape and result.dtype == dtype,
                        f"{name} of a {dtype} normalizer, given {source} of shape {x.shape}, must "
                        f"return {dtype} of that shape; got {result.dtype} of {result.shape}",
                    )
                    _expect(
                        not np.shares_memory(result, argument),
                        f"{name} must return memory of its own; got (a view of) its argument",
                    )
        x = subject.rows(4, dtype=dtype)
        expected = norm(x)
        for name, out in (("a new array", np.full_like(x, np.nan)), ("x itself", x)):
            result = norm(x, out=out)
            _expect(result is out, f"__call__ with out={name} must return out")
            _expect(
                np.array_equal(out, expected),
                f"__call__ with out={name} must write the result there; use write_out(y, out)",
            )


def check_input_untouched(subject: _Subject) -> None:
    """No call changes x, mask or dy."""
    norm = subject.trained()
    mask = np.array([True, True, False, True, True])
    arrays = {"x": subject.rows(5), "mask": mask, "dy": subject.rows(5, seed=3)}
    before = {key: array.copy() for key, array in arrays.items()}

    def expect_same(method: str) -> None:
        for key, array in arrays.items():
            _expect(_same_bits(array, before[key]), f"{method} must not change {key}; it did")

    norm(arrays["x"])
    expect_same("__call__")
    _, cache = norm.forward(arrays["x"], mask=mask)
    expect_same("forward")
    norm.backward(arrays["dy"], cache)
    expect_same("backward")


def check_memory_layout(subject: _Subject) -> None:
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
            _fail(f"{name} input must be accepted; it raised {_describe(error)}")
        for method, result in results.items():
            _expect(
                _close(result, expected[method]),
                f"{name} input must give the result of {method} that contiguous input gives. "
                "check_input and check_gradient return contiguous arrays",
            )


def check_empty_batch(subject: _Subject) -> None:
    """A batch of no rows gives no rows; forward may refuse it only if min_rows says so."""
    norm = subject.trained()
    empty = subject.rows(0)
    y = norm(empty)
    _expect(y.shape == empty.shape, f"inference must return shape {empty.shape}; got {y.shape}")
    if norm.min_rows > 0:
        _expect_raises(ValueError, lambda: norm.forward(empty), "forward of no rows")
        return
    y, cache = norm.forward(empty)
    _expect(y.shape == empty.shape, f"forward must return shape {empty.shape}; got {y.shape}")
    dx, grads = norm.backward(empty, cache)
    _expect(dx.shape == empty.shape, f"dx must have shape {empty.shape}; got {dx.shape}")
    for key, gradient in grads.items():
        _expect(
            not np.any(gradient),
            f"the gradient of {key!r} over no rows must be zeros; got {gradient}",
        )


def check_inference(subject: _Subject) -> None:
    """Inference changes no state, treats rows apart, and is forward's y if per_sample."""
    norm = subject.trained()
    x = subject.rows(5)
    before = _fingerprint(norm, x)
    y = norm(x)
    _expect(_fingerprint(norm, x) == before, "inference must not change the state; it did")
    _expect(
        _same_bits(norm(x[1:2])[0], y[1]),
        "in inference a row's result must not depend on the other rows; it does. A normalizer that "
        "works by batch statistics keeps running ones for inference",
    )
    if norm.per_sample:
        _expect(
            _close(norm.forward(x)[0], y),
            "with per_sample = True, inference and forward must give the same y; they differ",
        )


def check_declared_traits(subject: _Subject) -> None:
    """per_sample says whether, in training, a row's result depends on the other rows."""
    for dtype in ("float32", "float64"):
        norm = subject.trained(dtype)
        x, dy = subject.rows(5, dtype=dtype), subject.rows(5, dtype=dtype, seed=3)
        y, cache = norm.forward(x)
        if not norm.per_sample:
            changed = x.copy()
            changed[2:] = subject.rows(3, dtype=dtype, seed=4)
            _expect(
                not np.array_equal(norm.forward(changed)[0][:2], y[:2]),
                "with per_sample = False a row's y must depend on the other rows, and does not. "
                "Declare per_sample = True",
            )
            continue
        _expect(
            norm.min_rows == 0,
            f"with per_sample = True, min_rows must be 0; got {norm.min_rows}",
        )
        dx, _ = norm.backward(dy, cache)
        for rows in (slice(3, None), slice(None, None, -1), slice(1, 2)):
            y_part, cache = norm.forward(x[rows])
            dx_part, _ = norm.backward(dy[rows], cache)
            for name, part, whole in (("y", y_part, y), ("dx", dx_part, dx)):
                _expect(
                    _same_bits(part, whole[rows]),
                    f"with per_sample = True the bits of a row's {name} must not depend on the "
                    "batch; they do. Declare per_sample = False, or sum along the last axis of a "
                    "contiguous array",
                )


def check_mask(subject: _Subject) -> None:
    """Masked rows do not enter the statistics, and are normalized by them all the same."""
    mask = np.array([[True, False, True], [True, True, False]])
    x = subject.rows(2, 3)
    x[~mask] = x[0, 0]
    norm, plain = subject.trained(), subject.trained()
    y, _ = norm.forward(x, mask=mask)
    _expect(
        _close(y[~mask], np.broadcast_to(y[0, 0], y[~mask].shape)),
        "a masked row must be normalized like the others; one equal to a row that counts came out "
        "different",
    )
    full, _ = plain.forward(x, mask=np.ones_like(mask))
    _expect(
        _close(full, subject.trained().forward(x)[0]),
        "a mask that is True everywhere must give the result without a mask",
    )
    if norm.per_sample:
        _expect(_close(y, full), "with per_sample = True a mask must not change y; it does")
        return
    other = subject.trained()
    x[~mask] = 100.0
    y_other, _ = other.forward(x, mask=mask)
    _expect(
        _close(y_other[mask], y[mask]),
        "values in masked rows must not change the y of rows that count; they do. Leave rows where "
        "mask is False out of the statistics",
    )
    probe = subject.rows(2)
    _expect(
        _fingerprint(other, probe) == _fingerprint(norm, probe),
        "values in masked rows must not enter the running statistics; they do",
    )


def check_few_rows(subject: _Subject) -> None:
    """Method forward works from min_rows rows on, and forward_frozen for any number."""
    norm = subject.trained()
    probe = subject.rows(3)
    norm.forward(subject.rows(norm.min_rows))
    if norm.min_rows == 0:
        return
    _expect_raises(
        ValueError,
        lambda: norm.forward(subject.rows(norm.min_rows - 1)),
        f"forward of {norm.min_rows - 1} rows, with min_rows = {norm.min_rows},",
    )
    _expect_raises(
        ValueError,
        lambda: norm.forward(probe, mask=np.arange(3) < norm.min_rows - 1),
        f"forward with {norm.min_rows - 1} rows that count, with min_rows = {norm.min_rows},",
    )
    before = _fingerprint(norm, probe)
    x, dy = subject.rows(1), subject.rows(1, seed=3)
    y, cache = norm.forward_frozen(x)
    _expect(_fingerprint(norm, probe) == before, "forward_frozen must not change the state; it did")
    _expect(_close(y, norm(x)), "forward_frozen must give the y of inference; it does not")
    dx, _ = norm.backward(dy, cache)
    norm.forward(subject.rows(6, seed=5))
    _expect(
        _same_bits(norm.backward(dy, cache)[0], dx),
        "later calls of forward must not change what backward makes of an earlier cache; they do. "
        "Copy the running statistics into the cache",
    )
    _check_gradients_of(norm, norm.forward_frozen, x, ", after forward_frozen,")


def check_gradients(subject: _Subject) -> None:
    """The gradients of x and of every parameter agree with central differences."""
    norm = subject.trained()
    _check_gradients_of(norm, norm.forward, subject.rows(2, 3), "")
    if not norm.per_sample:
        mask = np.array([[True, False, True], [True, True, False]])
        x = subject.rows(2, 3)
        _check_gradients_of(norm, lambda x: norm.forward(x, mask=mask), x, ", with a mask,")


def check_gradient_names(subject: _Subject) -> None:
    """Every parameter, and nothing else, gets a gradient, of its shape and dtype."""
    for dtype, gain, bias in itertools.product(
        ("float32", "float64"), (True, False), (True, False)
    ):
        norm = subject.new(dtype, gain=gain, bias=bias)
        _, cache = norm.forward(subject.rows(4, dtype=dtype))
        _, grads = norm.backward(subject.rows(4, dtype=dtype, seed=3), cache)
        _expect(
            grads.keys() == norm.parameters.keys(),
            f"with gain={gain} and bias={bias} backward must return gradients for "
            f"{sorted(norm.parameters)}; got {sorted(grads)}",
        )
        for key, array in norm.parameters.items():
            got = grads[key]
            _expect(
                got.shape == array.shape and got.dtype == array.dtype,
                f"the gradient of {key!r} must have shape {array.shape} and dtype {array.dtype}; "
                f"got {got.shape} and {got.dtype}",
            )


def check_pure_backward(subject: _Subject) -> None:
    """Method backward is a pure function of dy and the cache, and the cache does not hold y."""
    norm = subject.trained()
    probe, dy = subject.rows(3, seed=5), subject.rows(5, seed=3)
    y, cache = norm.forward(subject.rows(5))
    before = _fingerprint(norm, probe)
    dx, grads = norm.backward(dy, cache)
    first = {"dx": dx.copy()} | {key: array.copy() for key, array in grads.items()}
    _expect(_fingerprint(norm, probe) == before, "backward must not change the state; it did")
    # Neither what it returned nor y is needed any more, so a caller may write to them.
    for array in (dx, *grads.values(), y):
        array[...] = np.nan
    norm.forward(subject.rows(5, seed=6))
    try:
        dx, grads = norm.backward(dy, cache)
    except Exception as error:
        _fail(f"backward must leave the cache for a second call; that raised {_describe(error)}")
    for key, array in {"dx": dx, **grads}.items():
        _expect(
            _same_bits(array, first[key]),
            f"a second call of backward must give the same {key}, also after another forward, and "
            "with y and the first results overwritten; it does not. Keep what backward needs in "
            "the cache, leave that alone, and let it hold neither y nor what backward returns",
        )


def check_config_round_trip(subject: _Subject) -> None:
    """get_config is JSON with every argument of __init__; from_config makes an equal normalizer."""
    norm = subject.new("float64", bias=False, eps=0.5)
    config = norm.get_config()
    try:
        same = json.loads(json.dumps(config)) == config
    except TypeError as error:
        _fail(f"get_config must return what JSON can hold; {error}")
    _expect(same, f"get_config must come back from JSON as it was; got {config}")
    for name, parameter in inspect.signature(type(norm)).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            _expect(
                name in config,
                f"get_config must have every argument of __init__; {name!r} is missing. "
                f"Return {{**super().get_config(), {name!r}: ...}}",
            )
    other = type(norm).from_config(config)
    _expect(
        other.get_config() == config,
        f"from_config must make a normalizer of the same config {config}; got {other.get_config()}",
    )
    other.load_state_dict(norm.state_dict())
    x = subject.rows(5)
    _expect(
        _same_bits(other(x), norm(x)) and _same_bits(other.forward(x)[0], norm.forward(x)[0]),
        "a normalizer made from the config and state of another must give the same results; it "
        "does not. Something that matters is in neither",
    )


def check_state_round_trip(subject: _Subject) -> None:
    """state_dict returns copies of all that matters; load_state_dict sets it in place."""
    norm, other = subject.trained(), subject.new()
    x = subject.rows(5)
    state = norm.state_dict()
    missing = sorted(norm.parameters.keys() - state.keys())
    _expect(not missing, f"state_dict must have all parameters; missing: {missing}")
    before = _fingerprint(norm, x)
    for array in norm.state_dict().values():
        array[...] = 7
    _expect(_fingerprint(norm, x) == before, "state_dict must return copies; got the arrays")

    held = dict(other.parameters)
    for array in held.values():
        array += 1
    other.load_state_dict(state)
    for key, array in held.items():
        _expect(
            array is other.parameters[key] and _same_bits(array, norm.parameters[key]),
            f"load_state_dict must write to parameters[{key!r}] in place; it does not",
        )
    _expect(
        _fingerprint(other, x) == before
        and _same_bits(other.forward(x)[0], norm.forward(x)[0])
        and _fingerprint(other, x) == _fingerprint(norm, x),
        "after load_state_dict results must be those of the normalizer whose state it is; they are "
        "not. What is not learned belongs in buffers",
    )


def check_copies(subject: _Subject) -> None:
    """Pickling and copy.deepcopy make equal, independent normalizers."""
    norm = subject.trained()
    x = subject.rows(5)
    before = _fingerprint(norm, x)
    for name, duplicate in (
        ("pickle", lambda: pickle.loads(pickle.dumps(norm))),
        ("copy.deepcopy", lambda: copy.deepcopy(norm)),
    ):
        try:
            other = duplicate()
        except Exception as error:
            _fail(f"{name} must work; it raised {_describe(error)}")
        _expect(
            type(other) is type(norm)
            and other.get_config() == norm.get_config()
            and _fingerprint(other, x) == before,
            f"{name} must make an equal normalizer; its config or state differs",
        )
        for array in other.parameters.values():
            array += 1
        other.forward(x)
        _expect(
            _fingerprint(norm, x) == before,
            f"{name} must make an independent normalizer; changing it changed the original",
        )


class _Mistake(NamedTuple):
    what: str
    error: type[Exception]
    call: Callable[[], object]


def _mistakes(norm: Normalizer, subject: _Subject) -> list[_Mistake]:
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


def check_refusals(subject: _Subject) -> None:
    """Wrong dtypes raise TypeError; wrong shapes, masks, steps and states raise ValueError."""
    for what, error, call in _mistakes(subject.trained(), subject):
        _expect_raises(error, call, what)
    norm = subject.trained()
    _, cache = norm.forward(subject.rows(4))
    _expect_raises(
        ValueError,
        lambda: norm.backward(subject.rows(1), cache),
        "backward of a dy of another shape than y",
    )


def check_state_after_error(subject: _Subject) -> None:
    """A call that raises leaves the state as it was."""
    norm = subject.trained()
    probe = subject.rows(3)
    mistakes = _mistakes(norm, subject)
    if norm.min_rows:
        few = subject.rows(norm.min_rows - 1)
        mistakes.append(_Mistake("forward of too few rows", ValueError, partial(norm.forward, few)))
    for what, _, call in mistakes:
        before = _fingerprint(norm, probe)
        with suppress(Exception):
            call()
            continue  # whether it should have raised is for check_refusals
        _expect(
            _fingerprint(norm, probe) == before,
            f"{what} raised, and changed the state before that. Check first, change last",
        )


def check_in_rnn(subject: _Subject) -> None:
    """It works at every time step of a vanilla RNN, and gradients through time are right."""
    _check_in_cell(subject, "rnn")


def check_in_gru(subject: _Subject) -> None:
    """It works at every time step of a GRU, and gradients through time are right."""
    _check_in_cell(subject, "gru")


def check_in_lstm(subject: _Subject) -> None:
    """It works at every time step of an LSTM, and gradients through time are right."""
    _check_in_cell(subject, "lstm")


def _check_in_cell(subject: _Subject, cell: str) -> None:
    steps, inputs, hidden = 3, 2, subject.features
    rng = np.random.default_rng(6)
    rnn = RNN(inputs, hidden, cell=cell, norm=subject.make, rng=rng, dtype=np.float64)
    # Sequences of different lengths, so that masks come into it; as many rows last to the end as
    # forward needs, because frozen running statistics are not differentiated.
    batch = 2 + max([4, *(norm.min_rows for norm in rnn.normalizers.values())])
    lengths = np.array([steps] * (batch - 2) + [2, 1])
    arrays = dict(rnn.parameters)
    for array in arrays.values():  # away from 0, where statistics vanish and curvature is extreme
        array += rng.uniform(-0.5, 0.5, array.shape)
    arrays["x"] = rng.normal(size=(steps, batch, inputs))
    states = ["h_0", "c_0"] if cell == "lstm" else ["h_0"]
    for name in states:
        arrays[name] = rng.normal(size=(1, batch, hidden))
    dy = rng.normal(size=(steps, batch, hidden))
    dstate = [rng.normal(size=(1, batch, hidden)) for _ in states]
    buffers = rnn.state_dict()

    def as_state(parts: Sequence[Array]) -> Array | tuple[Array, Array]:
        return (parts[0], parts[1]) if cell == "lstm" else parts[0]

    def as_parts(state: Array | tuple[Array, ...]) -> Sequence[Array]:
        return state if isinstance(state, tuple) else [state]

    def forward(lengths: npt.NDArray[np.int_]) -> tuple[float, Any]:
        rnn.load_state_dict({**buffers, **rnn.parameters})
        initial = as_state([arrays[name] for name in states])
        y, final, cache = rnn.forward(arrays["x"], initial, lengths=lengths)
        ends = [np.sum(a * b) for a, b in zip(as_parts(final), dstate, strict=True)]
        return float(np.sum(y * dy) + np.sum(ends)), cache

    y, _ = rnn(arrays["x"], as_state([arrays[name] for name in states]), lengths=lengths)
    _expect(np.all(np.isfinite(y)), f"inference in the {cell} cell must give finite values")
    _, cache = forward(np.array([steps] + [1] * (batch - 1)))
    dx, _, _ = rnn.backward(dy, cache, as_state(dstate))
    _expect(np.all(np.isfinite(dx)), f"with one row at a step, the {cell} cell must give finite dx")

    _, cache = forward(lengths)
    dx, dinitial, grads = rnn.backward(dy, cache, as_state(dstate))
    got = {**grads, "x": dx, **dict(zip(states, as_parts(dinitial), strict=True))}
    for name, array in arrays.items():
        direction = rng.normal(size=array.shape)
        direction /= np.linalg.norm(direction)
        kept = array.copy()
        losses = []
        for sign in (1, -1):
            array[...] = kept + sign * _DIFFERENCE * direction
            losses.append(forward(lengths)[0])
        array[...] = kept
        _expect_gradient(
            f"{name!r} in the {cell} cell over {steps} steps, along a random direction,",
            np.array(np.sum(got[name] * direction)),
            np.array((losses[0] - losses[1]) / (2 * _DIFFERENCE)),
        )


#: Every check by name, in the order in which they run.
CHECKS: dict[str, Callable[[_Subject], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_interface,
        check_shapes_and_dtypes,
        check_input_untouched,
        check_memory_layout,
        check_empty_batch,
        check_inference,
        check_declared_traits,
        check_mask,
        check_few_rows,
        check_gradients,
        check_gradient_names,
        check_pure_backward,
        check_config_round_trip,
        check_state_round_trip,
        check_copies,
        check_refusals,
        check_state_after_error,
        check_in_rnn,
        check_in_gru,
        check_in_lstm,
    )
}
