"""Running statistics of a whole training set, `RNN.population`."""

import copy
import pickle

import numpy as np
import pytest

import normlib
import reference_rnn
from networks import (
    LENGTHS,
    H,
    I,
    N,
    T,
    assert_equal_states,
    assert_same_state,
    draw_state,
    every_cell,
    every_dtype,
    every_norm,
    make,
    per_sample,
)
from normlib import errors

BATCH_SIZES = (4, 7, 2, 5)


def draw_batches(rng, n_steps=T, sizes=BATCH_SIZES):
    return [rng.standard_normal((n_steps, size, I)) for size in sizes]


def averages(rnn, batches, states, lengths):
    """Mean and variance by site and step, averaged over all valid rows; and how many batches."""
    totals = {}
    for x, state, valid in zip(batches, states, lengths, strict=True):
        seen = []
        reference_rnn.run(rnn, x, state, valid, training=True, seen=seen)
        for name, step, n_rows, mean, var in seen:
            total = totals.setdefault((name, step), [0, 0, 0.0, 0.0])
            total[0] += 1
            total[1] += n_rows
            total[2] = total[2] + n_rows * mean
            total[3] = total[3] + n_rows * var
    return {
        place: (batches_seen, mean / n_rows, var / n_rows)
        for place, (batches_seen, n_rows, mean, var) in totals.items()
    }


@every_cell
@every_dtype
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("steps", [1, 3, T, T + 2])
def test_population_is_the_average_over_all_rows(cell, dtype, options, with_lengths, steps):
    rng = np.random.default_rng(0)
    config = {"steps": steps, "momentum": 0.0, "eps": 1e-3}
    rnn = make(cell, "batch", norm_config=config, dtype=dtype, **options)
    batches = [x.astype(dtype) for x in draw_batches(rng)]
    states = [draw_state(rnn, rng, size) for size in BATCH_SIZES]
    lengths = [None] * len(batches)
    if with_lengths:
        lengths = [rng.permutation([T, T, *rng.integers(0, T + 1, n - 2)]) for n in BATCH_SIZES]
        lengths[2] = np.array([T, 2])  # steps of one row
    before = rnn.state_dict()
    expected = averages(rnn, batches, states, lengths)
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    outputs = []
    with rnn.population() as population:
        for x, state, valid in zip(batches, states, lengths, strict=True):
            outputs.append(population.update(x, state, valid))
        assert population.num_batches == len(batches)
        assert_same_state(rnn, before)
    reached = {name: set() for name in rnn.normalizers}
    for (name, step), (n_batches, mean, var) in expected.items():
        norm = rnn.normalizers[name]
        assert norm.num_batches[step] == n_batches
        np.testing.assert_allclose(norm.running_mean[step], mean, tolerance, tolerance)
        np.testing.assert_allclose(norm.running_var[step], var, tolerance, tolerance)
        reached[name].add(step)
    for name, norm in rnn.normalizers.items():
        assert norm.buffers.keys() == {"running_mean", "running_var", "num_batches"}
        for step in set(range(steps)) - reached[name]:  # what no batch reached stays
            for key, array in norm.buffers.items():
                np.testing.assert_array_equal(array[step], before[f"{name}.{key}"][step])
    for name, array in rnn.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    # What a batch was normalized by is what training takes.
    rnn.load_state_dict(before)
    for (y, final), x, state, valid in zip(outputs, batches, states, lengths, strict=True):
        trained_y, trained_final, _ = rnn.forward(x, state, valid)
        np.testing.assert_array_equal(y, trained_y)
        assert_equal_states(final, trained_final)


def test_population_of_equal_batches_is_the_plain_average():
    """As of the paper: of the estimates of each batch, by momentum None in a new network too."""
    rng = np.random.default_rng(0)
    batches = draw_batches(rng, sizes=(6, 6, 6))
    one = make("lstm", "batch", norm_config={"steps": T, "momentum": 0.3})
    with one.population() as population:
        for x in batches:
            population.update(x)
    other = make("lstm", "batch", norm_config={"steps": T, "momentum": None})
    for x in batches:
        other.forward(x)
    for name, array in other.state_dict().items():
        np.testing.assert_allclose(one.state_dict()[name], array, rtol=1e-12, atol=1e-14)


def test_population_is_of_the_weights_now():
    """Running statistics lag behind weights that changed; after the pass they do not."""
    rng = np.random.default_rng(0)
    rnn = make("gru", "batch", norm_config={"steps": T})
    x = rng.standard_normal((T, 64, I))
    rnn.forward(x)
    for name in rnn.parameters:
        rnn.parameters[name] *= 3
    with rnn.population() as population:
        y, state = population.update(x)
    # With one batch, inference normalizes by what training did.
    inferred, final = rnn(x)
    np.testing.assert_allclose(inferred, y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(final, state, rtol=1e-9, atol=1e-12)


class Failing(normlib.BatchNorm):
    """Fails at one step, once it has taken it."""

    def forward(self, x, *, step=0, mask=None):
        result = super().forward(x, step=step, mask=mask)
        if step == 3 and np.isnan(np.asarray(x)).any():
            raise RuntimeError("no")
        return result


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_statistics(error):
    rnn = make("lstm", "batch", bidirectional=True)
    before = rnn.state_dict()
    x = np.random.default_rng(0).standard_normal((T, N, I))

    def interrupted():
        with rnn.population() as population:
            population.update(x)
            raise error

    with pytest.raises(error):
        interrupted()
    assert_same_state(rnn, before)

    def refused():
        with rnn.population() as population:
            population.update(x)
            population.update(x[:, :, :2])

    with pytest.raises(errors.ShapeError):
        refused()
    assert_same_state(rnn, before)


def test_a_batch_that_fails_counts_as_not_seen():
    x = np.random.default_rng(0).standard_normal((2, T, N, I))
    bad = x[1].copy()
    bad[3] = np.nan
    states = []
    for fail in (False, True):
        rnn = make("lstm", "batch", norm=Failing, num_layers=2)
        with rnn.population() as population:
            population.update(x[0])
            if fail:
                with pytest.raises(RuntimeError) as caught:
                    population.update(bad)
                assert caught.value.__notes__ == ["at time step 3 of layer 0"]
            population.update(x[1])
            assert population.num_batches == 2
        states.append(rnn.state_dict())
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array)


def test_a_normalizer_that_refuses_at_the_end_leaves_all_as_they_were():
    class Refusing(normlib.BatchNorm):
        def take_population(self, twin):
            super().take_population(twin)
            if self.features == H:
                raise RuntimeError("no")

    rnn = make("lstm", "batch", norm=Refusing)
    before = rnn.state_dict()
    with pytest.raises(RuntimeError, match="no"), rnn.population() as population:
        population.update(np.random.default_rng(0).standard_normal((T, N, I)))
    assert_same_state(rnn, before)


@every_norm
def test_a_pass_without_batches_is_refused(norm):
    rnn = make("gru", norm)
    before = rnn.state_dict()
    with pytest.raises(errors.ParameterError, match="at least one batch"), rnn.population():
        pass
    assert_same_state(rnn, before)


def test_updates_outside_the_block_are_refused():
    rnn = make("gru", "batch")
    x = np.random.default_rng(0).standard_normal((T, N, I))
    population = rnn.population()
    with pytest.raises(errors.ParameterError, match="within the block"):
        population.update(x)
    with population:
        population.update(x)
    before = rnn.state_dict()
    with pytest.raises(errors.ParameterError, match="within the block"):
        population.update(x)
    with population:  # another pass, from nothing
        population.update(x)
        assert population.num_batches == 1
    assert_same_state(rnn, before)


@every_cell
@per_sample
def test_a_pass_changes_nothing_per_sample(cell, norm):
    rnn = make(cell, norm, num_layers=2, bidirectional=True)
    before = rnn.state_dict()
    x = np.random.default_rng(0).standard_normal((T, N, I))
    with rnn.population() as population:
        y, state = population.update(x, None, LENGTHS)
    expected, final = rnn(x, None, LENGTHS)
    np.testing.assert_array_equal(y, expected)
    assert_equal_states(state, final)
    assert_same_state(rnn, before)


class Largest(normlib.NoOp):
    """Divides by the largest number of all batches so far: statistics that nobody averages."""

    per_sample = False

    def __init__(self, features, **config):
        super().__init__(features, **config)
        self.buffers = {"largest": np.ones(1), "calls": np.zeros((), np.int64)}

    def __call__(self, x, *, step=0, out=None):
        return self.write_out(self.check_input(x) / self.buffers["largest"][0], out)

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        self.buffers["largest"][0] = max(self.buffers["largest"][0], np.abs(x).max())
        self.buffers["calls"] += 1
        return x / self.buffers["largest"][0], x


def test_a_normalizer_of_ones_own_starts_anew():
    rnn = make("tanh", "noop", norm=Largest)
    norm = rnn.normalizers["norm_a_l0"]
    batches = draw_batches(np.random.default_rng(0))
    rnn.forward(100 * batches[0])
    assert norm.buffers["largest"] > 10
    before = rnn.state_dict()
    with rnn.population() as population:
        for x in batches:
            population.update(x)
        assert_same_state(rnn, before)
    assert rnn.normalizers["norm_a_l0"] is norm
    assert 1 < norm.buffers["largest"] < 10
    assert norm.buffers["calls"] == T * len(batches)


def test_training_goes_on_after_a_pass():
    """Also that of copies, and by the plain average: the next batch is one more."""
    rnn = make("gru", "batch", norm_config={"steps": T, "momentum": None})
    x = np.random.default_rng(0).standard_normal((3, T, N, I))
    with rnn.population() as population:
        population.update(x[0])
        population.update(x[1])
    for one in (rnn, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        before = one.state_dict()
        one.forward(x[2])
        for site, norm in one.normalizers.items():
            assert norm.num_batches.tolist() == [3] * T
            moved = norm.running_mean - before[f"{site}.running_mean"]
            assert np.abs(moved).max() > 0
    twin = normlib.RNN.from_config(rnn.get_config())
    twin.load_state_dict(rnn.state_dict())


def test_a_pass_keeps_no_cache():
    """Its memory is that of inference, not of training."""
    import tracemalloc

    rnn = normlib.RNN(1, 32, norm="batch", norm_config={"steps": 100}, rng=0)
    x = np.random.default_rng(0).standard_normal((100, 64, 1)).astype(np.float32)
    peaks = []
    with rnn.population() as population:
        for run in (population.update, rnn.forward):
            tracemalloc.start()
            run(x)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[0] < peaks[1] / 2
