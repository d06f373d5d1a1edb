"""Normalizers that break a rule of the conformance kit, each named after what is wrong with it.

`BROKEN` has for each the check that finds it, and what the check says.
"""

import threading

import numpy as np

import normlib
from python_norm import RMSNorm


class IgnoresDType(normlib.LayerNorm):
    def __init__(self, features, *, dtype=np.float32, **config):
        super().__init__(features, **config)


class AlwaysHasBias(normlib.LayerNorm):
    def __init__(self, features, *, bias=True, **config):
        super().__init__(features, bias=True, **config)


class TakesNoKeywords(normlib.LayerNorm):
    def __init__(self, features):
        super().__init__(features)


class ForgetsCache(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        return super().forward(x, step=step, mask=mask)[0]


class ForgetsGradients(normlib.LayerNorm):
    def backward(self, dy, cache):
        return list(super().backward(dy, cache))


class ForgetsFrozenCache(normlib.BatchNorm):
    def forward_frozen(self, x, *, step=0):
        return self(x, step=step)


class PromotesToFloat64(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return y.astype(np.float64), cache


class IgnoresOut(normlib.LayerNorm):
    def __call__(self, x, *, step=0, out=None):
        return super().__call__(x, step=step)


class ReturnsItsInput(normlib.NoOp):
    def forward(self, x, *, step=0, mask=None):
        _, cache = super().forward(x, step=step, mask=mask)
        return self.check_input(x), cache


class CentersInPlace(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        x -= np.mean(x, axis=-1, keepdims=True)
        return super().forward(x, step=step, mask=mask)


class ScalesGradientInPlace(RMSNorm):
    def backward(self, dy, cache):
        result = super().backward(dy, cache)
        dy *= 2
        return result


class ClearsTheMask(normlib.BatchNorm):
    def forward(self, x, *, step=0, mask=None):
        result = super().forward(x, step=step, mask=mask)
        if mask is not None:
            mask[...] = False
        return result


class NeedsContiguous(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        x = np.frombuffer(x, x.dtype).reshape(x.shape)
        return super().forward(x, step=step, mask=mask)


class IgnoresStrides(normlib.LayerNorm):
    def __call__(self, x, *, step=0, out=None):
        return super().__call__(x.ravel(order="K").reshape(x.shape), step=step, out=out)


class NeedsOneRow(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        largest = np.max(np.abs(x))
        return super().forward(x / largest * largest, step=step, mask=mask)


class InfersDifferently(normlib.LayerNorm):
    def __call__(self, x, *, step=0, out=None):
        return super().__call__(x, step=step, out=out) * self.dtype.type(1.001)


class InfersByBatch(normlib.BatchNorm):
    def __call__(self, x, *, step=0, out=None):
        x = self.check_input(x, step=step)
        return self.write_out(self.affine(x - x.mean(axis=0)), out)


class LearnsInInference(normlib.BatchNorm):
    def __call__(self, x, *, step=0, out=None):
        self.buffers["num_batches"] += 1
        return super().__call__(x, step=step, out=out)


class ClaimsPerSample(normlib.BatchNorm):
    per_sample = True
    min_rows = 0


class ClaimsPerBatch(normlib.LayerNorm):
    per_sample = False


class SumsByBatch(RMSNorm):
    """Right to rounding, but a row's last bits depend on the rows before it."""

    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        totals = np.cumsum(y.reshape(-1, self.features), axis=0)
        y = np.diff(totals, axis=0, prepend=np.zeros_like(totals[:1])).reshape(y.shape)
        return y, cache


class IgnoresMask(normlib.BatchNorm):
    def forward(self, x, *, step=0, mask=None):
        return super().forward(x, step=step)


class ZeroesMasked(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        if mask is not None:
            y[~mask] = 0
        return y, cache


class HasNoFrozen(normlib.BatchNorm):
    forward_frozen = normlib.Normalizer.forward_frozen


class NeedsMoreRows(normlib.BatchNorm):
    min_rows = 1


class FrozenCacheIsLive(normlib.BatchNorm):
    def forward_frozen(self, x, *, step=0):
        y, cache = super().forward_frozen(x, step=step)
        return y, cache._replace(var=self.running_var[0])


class DoublesGradient(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return 2 * dx, grads


class ForgetsStatisticsInGradient(normlib.BatchNorm):
    def backward(self, dy, cache):
        return super().backward(dy, cache._replace(frozen=True))


class ForgetsMaskInGradient(normlib.BatchNorm):
    def backward(self, dy, cache):
        return super().backward(dy, cache._replace(mask=None))


class HalvesGainGradient(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, {key: value / 2 if key == "gain" else value for key, value in grads.items()}


class InventsGradient(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, {**grads, "bias": np.zeros(self.features, self.dtype)}


class GradientsInFloat64(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return dx, {key: value.astype(np.float64) for key, value in grads.items()}


class ReturnsOneArray(RMSNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        kept = vars(self).setdefault("kept", {}).setdefault(y.shape, np.empty_like(y))
        kept[...] = y
        return kept, cache


class ReturnsReadOnly(RMSNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        y.flags.writeable = False
        return y, cache


class AddsToOneGradient(RMSNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        kept = vars(self).setdefault("kept", {key: np.empty_like(grads[key]) for key in grads})
        for key, value in grads.items():
            kept[key][...] = value
        return dx, kept


class ConsumesCache(RMSNorm):
    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return y, list(cache)

    def backward(self, dy, cache):
        rstd = cache.pop()
        return super().backward(dy, (cache.pop(), rstd))


class CachesItsOutput(RMSNorm):
    def affine(self, xhat):
        return xhat if not self.parameters else super().affine(xhat)

    def __init__(self, features, *, gain=True, bias=True, **config):
        super().__init__(features, gain=False, bias=False, **config)


class CachesInItself(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        y, self.last = super().forward(x, step=step, mask=mask)
        return y, None

    def backward(self, dy, cache):
        return super().backward(dy, self.last)


class CountsBackwards(normlib.BatchNorm):
    def backward(self, dy, cache):
        self.num_batches[...] += 1
        return super().backward(dy, cache)


class ForgetsArgument(normlib.LayerNorm):
    def __init__(self, features, *, groups=1, **config):
        super().__init__(features, **config)
        self.groups = groups


class ConfigIsNotJSON(normlib.LayerNorm):
    def get_config(self):
        return {**super().get_config(), "dtype": self.dtype}


class DropsEps(normlib.LayerNorm):
    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "eps": 1e-5})


class HidesStatistics(normlib.BatchNorm):
    def __init__(self, features, **config):
        super().__init__(features, **config)
        self.hidden = self.buffers.pop("running_mean")

    @property
    def running_mean(self):
        return self.hidden


class LendsItsState(normlib.LayerNorm):
    def state_dict(self):
        return dict(self.parameters)


class ReplacesArrays(normlib.LayerNorm):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.parameters = {key: array.copy() for key, array in self.parameters.items()}


class GivesNoRows(normlib.LayerNorm):
    """tests/test_testing_rows.py has the other mistakes in row functions."""

    def row_functions(self, *, training):
        return "rows"


class HoldsLock(normlib.LayerNorm):
    def __init__(self, features, **config):
        super().__init__(features, **config)
        self.lock = threading.Lock()


class CopiesShareState(normlib.LayerNorm):
    def __deepcopy__(self, memo):
        other = type(self).from_config(self.get_config())
        other.parameters = self.parameters
        return other


class AcceptsIntegers(normlib.LayerNorm):
    def check_input(self, x, *, step=0, mask=None):
        x = np.asarray(x)
        return super().check_input(x if x.dtype == complex else x.astype(float), step=step)


class AcceptsAnyFeatureCount(normlib.NoOp):
    def __call__(self, x, *, step=0, out=None):
        return self.write_out(np.asarray(x).astype(self.dtype), out)


class BroadcastsGradient(RMSNorm):
    def check_gradient(self, dy, shape):
        return super().check_gradient(np.broadcast_to(dy, shape), shape)


class CountsBeforeChecking(normlib.BatchNorm):
    def forward(self, x, *, step=0, mask=None):
        self.num_batches[...] += 1
        return super().forward(x, step=step, mask=mask)


class LoadsHalf(normlib.LayerNorm):
    def load_state_dict(self, state):
        for key, array in self.parameters.items():
            array[...] = state[key]
        super().load_state_dict(state)


class KnowsTwoSteps(normlib.LayerNorm):
    def forward(self, x, *, step=0, mask=None):
        if step > 1:
            raise IndexError("step 2 is out of range")
        return super().forward(x, step=step, mask=mask)


class NeglectsLaterSteps(RMSNorm):
    """Its gradient is right at step 0, which is all that a look at one call would see."""

    def forward(self, x, *, step=0, mask=None):
        y, cache = super().forward(x, step=step, mask=mask)
        return y * self.dtype.type(1 + step), cache


BROKEN = [
    ("interface", IgnoresDType, "dtype must be float64; got float32"),
    ("interface", AlwaysHasBias, r"with bias=False there must be no parameters\['bias'\]"),
    ("interface", TakesNoKeywords, "must accept features and the keywords gain, bias, eps"),
    ("interface", lambda features, **config: features, "must return a Normalizer; got 8"),
    (
        "interface",
        ForgetsCache,
        r"forward of .* must return .* \(y, cache\); got ndarray",
    ),
    ("interface", ForgetsGradients, r"backward of .* must return .* \(dx, grads\); got list of 2"),
    ("interface", ForgetsFrozenCache, r"forward_frozen of .* must return .* \(y, cache\)"),
    ("shapes_and_dtypes", PromotesToFloat64, "forward of a float32 .* got float64"),
    ("shapes_and_dtypes", IgnoresOut, "with out=a new array must return out"),
    ("shapes_and_dtypes", ReturnsItsInput, "must return memory of its own"),
    ("shapes_and_dtypes", ReturnsOneArray, "__call__ must return memory of its own; got an array"),
    ("shapes_and_dtypes", ReturnsReadOnly, "__call__ must return arrays that the caller may write"),
    ("shapes_and_dtypes", AddsToOneGradient, "backward must return memory of its own; got an"),
    ("input_untouched", CentersInPlace, "forward must not change x"),
    ("input_untouched", ScalesGradientInPlace, "backward must not change dy"),
    ("input_untouched", ClearsTheMask, "forward must not change mask"),
    ("memory_layout", NeedsContiguous, "Fortran-ordered input must be accepted; it raised"),
    ("memory_layout", IgnoresStrides, "Fortran-ordered input must give the result of __call__"),
    ("memory_layout", CentersInPlace, "read-only input must be accepted; it raised ValueError"),
    (
        "empty_batch",
        NeedsOneRow,
        r"zero-size array .* \(broken_normalizers.py, line \d+, in forward\)",
    ),
    ("inference", InfersDifferently, "inference and forward must give the same y"),
    ("inference", InfersByBatch, "must not depend on the other rows"),
    ("inference", LearnsInInference, "inference must not change the state"),
    ("declared_traits", ClaimsPerSample, "bits of a row's y must not depend on the batch"),
    ("declared_traits", ClaimsPerBatch, "Declare per_sample = True"),
    ("declared_traits", SumsByBatch, "bits of a row's y must not depend on the batch"),
    ("mask", IgnoresMask, "values in masked rows must not change the y of rows that count"),
    ("mask", ZeroesMasked, "a masked row must be normalized like the others"),
    ("few_rows", HasNoFrozen, "at least two values per channel; got 1 in x of shape"),
    ("few_rows", NeedsMoreRows, "at least two values per channel; got 1 in x of shape"),
    ("few_rows", FrozenCacheIsLive, "Copy the running statistics into the cache"),
    ("gradients", DoublesGradient, r"the gradient of x is wrong: at \(\d, \d, \d\)"),
    ("gradients", ForgetsStatisticsInGradient, "the gradient of x is wrong"),
    ("gradients", ForgetsMaskInGradient, "the gradient of x, with a mask, is wrong"),
    ("gradients", HalvesGainGradient, "the gradient of 'gain' is wrong"),
    ("gradient_names", InventsGradient, r"must return gradients for \['gain'\]; got"),
    ("gradient_names", GradientsInFloat64, "and dtype float32; got .* and float64"),
    ("pure_backward", ConsumesCache, "must leave the cache for a second call"),
    ("pure_backward", CachesItsOutput, "must give the same dx"),
    ("pure_backward", CachesInItself, "must give the same dx"),
    ("pure_backward", CountsBackwards, "backward must not change the state"),
    ("config_round_trip", ForgetsArgument, "'groups' is missing"),
    ("config_round_trip", ConfigIsNotJSON, "must return what JSON can hold"),
    ("config_round_trip", DropsEps, "must make a normalizer of the same config"),
    ("state_round_trip", HidesStatistics, "What is not learned belongs in buffers"),
    ("state_round_trip", LendsItsState, "state_dict must return copies"),
    ("state_round_trip", ReplacesArrays, r"write to parameters\['gain'\] in place"),
    ("copies", HoldsLock, "pickle must work; it raised TypeError"),
    ("copies", CopiesShareState, "copy.deepcopy must make an independent normalizer"),
    ("refusals", AcceptsIntegers, "__call__ of int64 must raise TypeError; it was accepted"),
    ("refusals", AcceptsAnyFeatureCount, "__call__ of .* must raise"),
    ("refusals", BroadcastsGradient, "backward of a dy of another shape than y must raise"),
    ("state_after_error", CountsBeforeChecking, "changed the state before that"),
    ("state_after_error", LoadsHalf, "load_state_dict with .* changed the state before that"),
    ("row_functions", GivesNoRows, "must be a RowFunctions; got"),
    ("in_rnn", KnowsTwoSteps, "step 2 is out of range"),
    ("in_gru", KnowsTwoSteps, "step 2 is out of range"),
    ("in_lstm", KnowsTwoSteps, "step 2 is out of range"),
    (
        "in_rnn",
        NeglectsLaterSteps,
        "in the rnn cell over 3 steps, along a random direction, is wrong",
    ),
    (
        "in_gru",
        NeglectsLaterSteps,
        "in the gru cell over 3 steps, along a random direction, is wrong",
    ),
    (
        "in_lstm",
        NeglectsLaterSteps,
        "in the lstm cell over 3 steps, along a random direction, is wrong",
    ),
]
