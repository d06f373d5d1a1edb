"""The conformance kit on compiled row functions: each mistake is caught, and says what is wrong."""

import numpy as np
import pytest

import normlib
from normlib import testing
from normlib.testing import CHECKS, ConformanceError, check_normalizer
from python_rows import PythonRows

OTHERS = CHECKS.keys() - {"interface", "row_functions"}


def test_sound_row_functions_pass():
    assert check_normalizer(PythonRows) == list(CHECKS)


class OnlyInference(PythonRows):
    def row_functions(self, *, training):
        return None if training else super().row_functions(training=training)


class OnlyForward(PythonRows):
    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(backward=None)


class OnlyFloat32(PythonRows):
    def row_functions(self, *, training):
        return super().row_functions(training=training) if self.dtype == np.float32 else None


class OnlyEven(PythonRows):
    """There are no odd sizes."""

    def __init__(self, features, **config):
        super().__init__(features, **config)
        if features % 2:
            raise ValueError("features must be even")


class Settings(PythonRows):
    """A parameter without a name, of a size of its own, and one that is not there."""

    def row_functions(self, *, training):
        rows = super().row_functions(training=training)
        parameters = (*rows.parameters, np.ones(3, self.dtype), None)
        return rows._replace(parameters=parameters, names=("gain", None, None))


@pytest.mark.parametrize("norm", [OnlyInference, OnlyForward, OnlyFloat32, OnlyEven, Settings])
def test_what_is_not_offered_is_not_asked_for(norm):
    assert check_normalizer(norm, skip=OTHERS) == ["interface", "row_functions"]


# ---- mistakes, each class named after its own ---------------------------------------------------


class ForgetsEps(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, 0, cache, size)


class ForgetsTail(PythonRows):
    """As a loop over vectors of four does without its end."""

    def row_forward(self, x, y, gain, eps, cache, size):
        kept = y.copy()
        super().row_forward(x, y, gain, eps, cache, size)
        y[size // 4 * 4 :] = kept[size // 4 * 4 :]


class ForgetsOneFeature(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        if size != 1:
            super().row_forward(x, y, gain, eps, cache, size)


class WrongInInference(PythonRows):
    def row_functions(self, *, training):
        rows = super().row_functions(training=training)
        return rows if training else rows._replace(parameters=(None,), names=(None,))


class ZeroesNaN(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(np.nan_to_num(x), y, gain, eps, cache, size)


class DoublesGradient(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        dx[:size] *= 2


class SetsGradient(PythonRows):
    """Instead of adding to it."""

    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        if dgain is not None:
            dgain[:size] = 0
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)


class HalvesGainGradient(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        kept = None if dgain is None else dgain.copy()
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        if dgain is not None:
            dgain[:size] = (dgain[:size] + kept[:size]) / 2


class LeavesCacheUnwritten(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, np.empty(1), size)


class WritesPastOutput(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        y[size] = 0


class NeedsMoreCache(PythonRows):
    cache_size = 2

    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        cache[1] = 0

    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(cache_size=1)


class WritesPastInputGradient(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        dx[size] = 0


class WritesPastGainGradient(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        if dgain is not None:
            dgain[size] += 1


class CentersInPlace(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        x[:size] -= 1


class ChangesTheGain(PythonRows):
    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        if gain is not None:
            gain[:size] *= 2


class ScalesInPlace(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        dy[:size] *= 2


class ConsumesCache(PythonRows):
    def row_backward(self, dy, x, dx, gain, eps, cache, dgain, size):
        super().row_backward(dy, x, dx, gain, eps, cache, dgain, size)
        cache[0] = 0


class RemembersTheLastRow(PythonRows):
    last = 0.0

    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        y[:size] *= 1 + 1e-7 * (type(self).last == cache[0])
        type(self).last = 0.0 if np.isnan(cache[0]) else cache[0]


class DependsOnTheAddress(PythonRows):
    """As sums do that begin with what comes before a multiple of the vector's size."""

    def row_forward(self, x, y, gain, eps, cache, size):
        super().row_forward(x, y, gain, eps, cache, size)
        y[:size] *= 1 + 4 * np.finfo(self.dtype).eps * (x.ctypes.data % 16 // x.itemsize)


class AnotherType(PythonRows):
    def row_functions(self, *, training):
        other = PythonRows(self.features, dtype=np.float64)
        return other.row_functions(training=training)


class NotLowLevel(PythonRows):
    def row_functions(self, *, training):
        rows = super().row_functions(training=training)
        return rows._replace(forward=rows.forward.function)


class PlainTuple(PythonRows):
    def row_functions(self, *, training):
        return tuple(super().row_functions(training=training))


class NegativeCache(PythonRows):
    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(cache_size=-1)


class TooFewNames(PythonRows):
    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(names=())


class ForgetsTheName(PythonRows):
    def row_functions(self, *, training):
        return super().row_functions(training=training)._replace(names=(None,))


class OffersACopy(PythonRows):
    def row_functions(self, *, training):
        rows = super().row_functions(training=training)
        gain = self.parameters.get("gain")
        return rows._replace(parameters=(None if gain is None else gain.copy(),))


class OffersAView(PythonRows):
    """Not contiguous, so that the loop cannot take it."""

    def row_functions(self, *, training):
        rows = super().row_functions(training=training)
        setting = np.ones(4, self.dtype)[::2]
        return rows._replace(parameters=(*rows.parameters, setting), names=("gain", None))


BROKEN = {
    ForgetsEps: r"forward of the row functions must give y of the Python methods: at 0 that is",
    ForgetsTail: r"must give y of the Python methods: at 0 that is .*; it gave nan, for .*=1,",
    ForgetsOneFeature: r"must give y of the Python methods: .*features=1, gain=True",
    WrongInInference: r"forward of the row functions must give y of the Python methods",
    ZeroesNaN: r"must give y of the Python methods: at \d+ that is nan; it gave",
    DoublesGradient: r"backward of the row functions must give dx of the Python methods",
    SetsGradient: r"must give the gradient of 'gain' of the Python methods",
    HalvesGainGradient: r"must give the gradient of 'gain' of the Python methods",
    LeavesCacheUnwritten: r"must give dx of the Python methods: .* it gave nan",
    WritesPastOutput: r"forward .* must write to y its 1 numbers; it wrote before or after them",
    NeedsMoreCache: r"must write to cache its 1 numbers; it wrote before or after them",
    WritesPastInputGradient: r"backward .* must write to dx its 1 numbers; it wrote before or",
    WritesPastGainGradient: r"must write to the gradient of 'gain' its 1 numbers; it wrote before",
    CentersInPlace: r"forward of the row functions must not change x; it did",
    ChangesTheGain: r"forward of the row functions must not change parameters\[0\]; it did",
    ScalesInPlace: r"backward of the row functions must not change dy; it did",
    ConsumesCache: r"backward of the row functions must not change cache; it did",
    RemembersTheLastRow: r"must give the same bits of y at any address and after any other row",
    DependsOnTheAddress: r"must give the same bits of y at any address and after any other row",
    AnotherType: r"of the signature 'void \(const float \*x, .*argument 1 is double \* instead of",
    NotLowLevel: r"must be a scipy.LowLevelCallable of the signature 'void \(const float \*x,",
    PlainTuple: r"must be a RowFunctions; got \(LowLevelCallable",
    NegativeCache: r"must have a cache_size of at least 0, an integer; got -1",
    TooFewNames: r"at most 4 parameters, and as many names; got 1 and 0",
    ForgetsTheName: r"must have each of \['gain'\] once, or it gets no gradient; got \(None,\)",
    OffersACopy: r"must offer what self.parameters has at the call; for 'gain' it offers another",
    OffersAView: r"LSTM must run by the row functions, and goes step by step: the parameters at",
}


@pytest.mark.parametrize("norm", BROKEN, ids=lambda norm: norm.__name__)
def test_a_mistake_is_caught(norm):
    with pytest.raises(ConformanceError, match=BROKEN[norm]) as caught:
        check_normalizer(norm, skip=OTHERS)
    assert set(caught.value.failures) == {"row_functions"}


def test_a_normalizer_without_any_is_asked_for_no_other_size():
    class OnlyEight(normlib.LayerNorm):
        def __init__(self, features, **config):
            if features != 8:
                raise RuntimeError("no")
            super().__init__(features, **config)

        def row_functions(self, *, training):
            return None

    assert testing.check_normalizer(OnlyEight, skip=OTHERS) == ["interface", "row_functions"]
