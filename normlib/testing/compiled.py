"""Checks of compiled row functions: called as the fused loop calls them, beside the methods."""

import ctypes
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array
from normlib.errors import NormlibError
from normlib.normalizers import Normalizer, RowFunctions
from normlib.normalizers.rows import check_rows
from normlib.rnn import RNN
from normlib.testing.subject import Subject, expect, fail, same_bits

# Sizes with every remainder that a loop over vectors may leave, as far as the normalizer has them.
_FEATURES = (1, 2, 3, 5, 7, 16, 31, 33, 67)
# A rounding error or two in the order of sums, not another formula.
_TOLERANCES = {"float32": 1e-4, "float64": 1e-9}
# So large that forgetting it shows.
_EPS = 0.25
# Numbers around every array that must stay as they are, and what they are.
_GUARD = 64
_MARK = -12345.678

_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_Pointer, _Size, _Double = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_double
# These release the GIL, as the loop does.
_PROTOTYPES = {
    "forward": ctypes.CFUNCTYPE(None, _Pointer, _Pointer, _Size, _Pointer, _Double, _Pointer),
    "backward": ctypes.CFUNCTYPE(
        None, _Pointer, _Pointer, _Pointer, _Size, _Pointer, _Double, _Pointer, _Pointer
    ),
}


def check_row_functions(subject: Subject) -> None:
    """Compiled row functions, if there are any, do to a row what the Python methods do."""
    offered = (
        subject.new(dtype).row_functions(training=training)
        for dtype, training in itertools.product(("float32", "float64"), (False, True))
    )
    if all(rows is None for rows in offered):
        return
    for features in sorted({*_FEATURES, subject.features, 4 * subject.features}):
        sized = subject._replace(features=features)
        for dtype, gain, bias in itertools.product(
            ("float32", "float64"), (True, False), (True, False)
        ):
            try:
                norm = sized.trained(dtype, gain=gain, bias=bias, eps=_EPS)
            except ValueError:
                if features == subject.features:
                    raise
                continue
            _check(norm, sized)
    for dtype in ("float32", "float64"):
        _check_fused(subject, dtype)


def _check(norm: Normalizer, subject: Subject) -> None:
    for training in (False, True):
        rows = norm.row_functions(training=training)
        if rows is None:
            continue
        try:
            check_rows(f"of {norm!r}", rows, norm.dtype)
        except NormlibError as error:
            fail(str(error))
        if training and (rows.forward is None) != (rows.backward is None):
            continue  # for inference alone
        if training:
            _check_parameters(norm, rows)
        for step in (0, 3):
            _check_rows(norm, rows, subject, step, training)


def _check_parameters(norm: Normalizer, rows: RowFunctions) -> None:
    names = sorted(name for name in rows.names if name is not None and name in norm.parameters)
    expect(
        names == sorted(norm.parameters),
        f"names of the row functions must have each of {sorted(norm.parameters)} once, or it gets "
        f"no gradient; got {rows.names}",
    )
    for name, array in zip(rows.names, rows.parameters, strict=True):
        expect(
            name is None or array is norm.parameters.get(name),
            f"row_functions must offer what self.parameters has at the call; for {name!r} it "
            "offers another array",
        )


def _check_rows(
    norm: Normalizer, rows: RowFunctions, subject: Subject, step: int, training: bool
) -> None:
    """Three rows, the second with a NaN, and the third equal to the first at another address."""
    x = subject.rows(3, dtype=norm.dtype.name)
    dy = subject.rows(3, dtype=norm.dtype.name, seed=3)
    x[1, -1] = np.nan
    x[2], dy[2] = x[0], dy[0]
    results = []
    for k in range(3):
        row = _Row(norm, rows, step, shift=k)
        y, cache = row.forward(x[k])
        result = {"y": y, "the cache": cache}
        if training:
            expected, python_cache = norm.forward(x[k], step=step)
            dx, gradients = row.backward(dy[k], x[k], cache)
            expected_dx, grads = norm.backward(dy[k], python_cache)
            row.compare("backward", "dx", dx, expected_dx)
            for name, gradient in gradients.items():
                row.compare("backward", f"the gradient of {name!r}", gradient, grads[name])
            result |= {"dx": dx, **gradients}
        else:
            expected = norm(x[k], step=step)
        row.compare("forward", "y", y, expected)
        results.append(result)
    for key, first in results[0].items():
        expect(
            same_bits(results[2][key], first),
            f"a row must give the same bits of {key} at any address and after any other row; it "
            f"does not, {row.where}",
        )


def _check_fused(subject: Subject, dtype: str) -> None:
    rnn = RNN(2, subject.features, cell="lstm", norm=subject.make, rng=0, dtype=dtype)
    for training, path in ((False, rnn.path.inference), (True, rnn.path.training)):
        offered = [norm.row_functions(training=training) for norm in rnn.normalizers.values()]
        expect(
            path == "fused"
            or any(
                rows is None or (training and (rows.forward is None) != (rows.backward is None))
                for rows in offered
            ),
            f"a {dtype} LSTM must run by the row functions, and goes step by step: "
            f"{rnn.path.reason}",
        )


class _Guarded:
    """An array with marks around it, at an address that depends on the shift."""

    def __init__(self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike, shift: int) -> None:
        values = np.asarray(values, dtype)
        self.name = name
        self.memory = np.full(values.size + 2 * _GUARD + shift, _MARK, dtype)
        self.inside = slice(_GUARD + shift, _GUARD + shift + values.size)
        self.values = self.memory[self.inside]
        self.values[...] = values
        self.before = self.memory.copy()

    @property
    def address(self) -> int:
        return self.values.ctypes.data if self.values.size else 0


class _Row:
    """Calls row functions for one row."""

    def __init__(self, norm: Normalizer, rows: RowFunctions, step: int, shift: int) -> None:
        self.norm, self.rows, self.shift = norm, rows, shift
        self.where = f"for {norm!r} at step {step}"
        self.parameters = [
            None
            if array is None
            else self._guarded(
                f"parameters[{k}]", array if array.ndim == 1 else array[min(step, len(array) - 1)]
            )
            for k, array in enumerate(rows.parameters)
        ]

    def forward(self, row: Array) -> tuple[Array, Array]:
        """Return y and the cache."""
        if self.rows.forward is None:
            return row.copy(), np.empty(0)
        x = self._guarded("x", row)
        y = self._guarded("y", np.full_like(row, np.nan))
        cache = self._guarded("cache", np.full(self.rows.cache_size, np.nan), np.float64)
        self._call("forward", self.rows.forward, [x, y], [cache.address])
        self._expect_written("forward", [x, *self.parameters], [y, cache])
        return y.values, cache.values

    def backward(
        self, dy_row: Array, row: Array, cache_row: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Return dx and the gradients by name."""
        if self.rows.backward is None:
            return dy_row.copy(), {}
        dy, x = self._guarded("dy", dy_row), self._guarded("x", row)
        dx = self._guarded("dx", np.full_like(row, np.nan))
        cache = self._guarded("cache", cache_row, np.float64)
        # The sums of other rows are there already.
        start = np.linspace(1, 2, self.norm.features)
        gradients = {
            name: self._guarded(f"the gradient of {name!r}", start, np.float64)
            for name, array in zip(self.rows.names, self.rows.parameters, strict=True)
            if name is not None and array is not None
        }
        places = _addresses([gradients.get(name or "") for name in self.rows.names])
        self._call("backward", self.rows.backward, [dy, x, dx], [cache.address, places.ctypes.data])
        self._expect_written(
            "backward", [dy, x, cache, *self.parameters], [dx, *gradients.values()]
        )
        return dx.values, {name: array.values - start for name, array in gradients.items()}

    def compare(self, method: str, what: str, got: Array, expected: Array) -> None:
        """Compare with what the Python method gave."""
        tolerance = _TOLERANCES[self.norm.dtype.name] * max(
            1.0, np.nan_to_num(np.abs(expected)).max()
        )
        wrong = ~np.isclose(got, expected, rtol=0, atol=tolerance, equal_nan=True)
        if np.any(wrong):
            k = int(np.argmax(wrong))
            fail(
                f"{method} of the row functions must give {what} of the Python methods: at {k} "
                f"that is {expected[k]:.9g}; it gave {got[k]:.9g}, {self.where}"
            )

    def _guarded(
        self, name: str, values: npt.ArrayLike, dtype: npt.DTypeLike | None = None
    ) -> _Guarded:
        return _Guarded(name, values, dtype or self.norm.dtype, self.shift)

    def _call(self, method: str, function: Any, arrays: list[_Guarded], rest: list[int]) -> None:
        """Call a `scipy.LowLevelCallable`, whose first item is a capsule of the C function."""
        pointer = _pointer_of(tuple.__getitem__(function, 0), function.signature.encode())
        parameters = _addresses(self.parameters)
        _PROTOTYPES[method](pointer)(
            *(array.address for array in arrays),
            self.norm.features,
            parameters.ctypes.data,
            self.norm.eps,
            *rest,
        )

    def _expect_written(
        self, method: str, inputs: list[_Guarded | None], outputs: list[_Guarded]
    ) -> None:
        """Check that the call has left alone what it had to."""
        for array in outputs:
            array.before[array.inside] = array.values
            expect(
                same_bits(array.memory, array.before),
                f"{method} of the row functions must write to {array.name} its "
                f"{array.values.size} numbers; it wrote before or after them, {self.where}",
            )
        for given in inputs:
            expect(
                given is None or same_bits(given.memory, given.before),
                f"{method} of the row functions must not change {given.name if given else ''}; it "
                f"did, {self.where}",
            )


def _addresses(arrays: list[_Guarded | None]) -> npt.NDArray[np.uintp]:
    return np.array([array.address if array else 0 for array in arrays], np.uintp)
