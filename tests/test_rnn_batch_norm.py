"""Recurrent batch norm: statistics of each step, batches without any, constant inputs, population.

The paper is Cooijmans et al., "Recurrent Batch Normalization", arXiv:1603.09025.
"""

import copy
import pickle

import numpy as np
import pytest

import normlib
import reference_rnn
from gradcheck import assert_gradient
from networks import (
    CELLS,
    LENGTHS,
    H,
    I,
    N,
    T,
    as_list,
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


# ---- statistics of each step ---------------------------------------------------------------------


def test_statistics_of_each_step_and_the_last_ones_beyond():
    rnn = make("tanh", "batch", norm_config={"steps": 3, "momentum": None, "eps": 1e-3})
    norm = rnn.normalizers["norm_a_l0"]
    rnn.forward(np.random.default_rng(0).standard_normal((T, N, I)))
    assert norm.num_batches.tolist() == [1, 1, 3]
    assert len(np.unique(norm.running_mean, axis=0)) == 3
    x = np.random.default_rng(1).standard_normal((N, I))
    last = rnn.step(x, step=2)[0]
    for step in (3, 4, 1000):
        np.testing.assert_array_equal(rnn.step(x, step=step)[0], last)
    assert not np.array_equal(rnn.step(x, step=1)[0], last)


def test_gains_and_biases_are_shared_and_gains_start_at_a_tenth():
    rnn = normlib.RNN(I, H, norm="batch", norm_config={"steps": 7})
    for site, normalizer in rnn.normalizers.items():
        assert normalizer.running_mean.shape == (7, normalizer.features)
        assert rnn.parameters[f"{site}.gain"].shape == (normalizer.features,)
        assert np.all(rnn.parameters[f"{site}.gain"] == np.float32(0.1))
    assert rnn.parameters["norm_c_l0.bias"].shape == (H,)


def test_steps_of_one_row_leave_the_running_statistics():
    rnn = make("lstm", "batch", norm_config={"steps": T})
    before = rnn.state_dict()
    rnn.forward(np.random.default_rng(0).standard_normal((T, 3, I)), None, [2, 5, 3])
    after = rnn.state_dict()
    for site in rnn.normalizers:
        batches = after[f"{site}.num_batches"] - before[f"{site}.num_batches"]
        assert batches.tolist() == [1, 1, 1, 0, 0]
        changed = after[f"{site}.running_mean"] != before[f"{site}.running_mean"]
        assert changed.any(axis=1).tolist() == [True, True, True, False, False]


# ---- batches without statistics ------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize(
    ("shape", "lengths", "rows"),
    [
        ((T, 1, I), None, 1),
        ((T, 1, I), [3], 1),
        ((T, N, I), [0] * N, 0),
        ((T, N, I), [0, T, 0, 0], 1),
        ((T, 0, I), None, 0),
        ((0, N, I), None, 0),
    ],
)
def test_a_batch_without_two_valid_rows_is_refused(cell, shape, lengths, rows):
    rnn = make(cell, "batch", num_layers=2, bidirectional=True)
    before = rnn.state_dict()
    message = f"at least 2 rows with a valid time step, .* BatchNorm at norm_.*; got {rows} in x"
    with pytest.raises(errors.ShapeError, match=f"^forward .*{message}"):
        rnn.forward(np.ones(shape), None, lengths)
    with rnn.population() as population:
        with pytest.raises(errors.ShapeError, match=f"^update .*{message}"):
            population.update(np.ones(shape), None, lengths)
        assert population.num_batches == 0
        population.update(np.ones((T, N, I)))
    rnn.load_state_dict(before)
    y, _ = rnn(np.ones(shape), None, lengths)  # inference is not refused
    assert y.shape == (*shape[:2], 2 * H)


@every_cell
@per_sample
def test_normalizers_per_sample_take_any_batch(cell, norm):
    rnn = make(cell, norm)
    for shape, lengths in (((T, 1, I), None), ((T, N, I), [0] * N), ((T, 0, I), None)):
        rnn.forward(np.ones(shape), None, lengths)


# ---- constant inputs -----------------------------------------------------------------------------


def images(rng, n_black, n_steps, dtype):
    """Sequences of pixels of which the first are black."""
    x = np.zeros((n_steps, 8, 1), dtype)
    x[n_black:] = rng.uniform(0, 1, (n_steps - n_black, 8, 1))
    return x


@every_cell
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_gradients_are_finite_where_inputs_are_constant(cell, options):
    """In float32 as in float64, and for more steps than there are orders of magnitude."""
    results = []
    for dtype in (np.float32, np.float64):
        rng = np.random.default_rng(0)
        rnn = normlib.RNN(
            1, 16, norm="batch", norm_config={"steps": 310}, rng=0, dtype=dtype, **CELLS[cell],
            **options,
        )  # fmt: skip
        y, _, cache = rnn.forward(images(rng, 300, 310, dtype))
        dx, dstate, grads = rnn.backward(rng.standard_normal(y.shape), cache)
        for array in (y, dx, *as_list(dstate), *grads.values()):
            assert np.isfinite(array).all()
        results.append(grads)
    if options:  # its reverse direction runs over varied pixels first: chaos, but within numbers
        return
    for name, gradient in results[1].items():
        scale = np.abs(gradient).max()
        assert scale > 0
        np.testing.assert_allclose(results[0][name], gradient, rtol=0, atol=0.05 * scale)


@every_cell
@pytest.mark.parametrize("lengths", [None, [9, 9, 8, 9, 2, 6, 9, 0]])
def test_gradients_of_parameters_are_exact_where_inputs_are_constant(cell, lengths):
    rng = np.random.default_rng(0)
    rnn = normlib.RNN(
        1, 3, norm="batch", norm_config={"steps": 9}, rng=0, dtype=np.float64, num_layers=2,
        **CELLS[cell],
    )  # fmt: skip
    x = images(rng, 5, 9, np.float64)
    for name, array in rnn.parameters.items():
        if name.startswith("bias"):  # away from the kink of relu
            array += rng.uniform(0.1, 0.3, array.shape)
    dy = rng.standard_normal((9, 8, 3))
    before = rnn.state_dict()

    def loss():
        for site, normalizer in rnn.normalizers.items():
            for key, array in normalizer.buffers.items():
                array[...] = before[f"{site}.{key}"]
        return np.sum(rnn.forward(x, None, lengths)[0] * dy)

    _, _, cache = rnn.forward(x, None, lengths)
    _, _, grads = rnn.backward(dy, cache)
    for name, gradient in grads.items():
        assert_gradient(gradient, loss, rnn.parameters[name], tolerance=1e-5)


def test_rows_alike_get_the_mean_and_others_their_own():
    """Where they are alike but for the state, or in part, a gradient stays as it is."""
    rng = np.random.default_rng(0)
    rnn = make("gru", "batch", sizes=(1, 4))
    x = np.zeros((2, N, 1))
    y, _, cache = rnn.forward(x)
    dx, _, _ = rnn.backward(rng.standard_normal(y.shape), cache)
    np.testing.assert_allclose(dx, np.broadcast_to(dx[:, :1], dx.shape), rtol=1e-12)
    for state in (
        draw_state(rnn, rng),
        np.tile(np.array([0.0, 0.0, 0.0, 1.0])[:, None], (1, 1, 4)),
    ):
        y, _, cache = rnn.forward(x, state)
        dx, dstate, _ = rnn.backward(np.zeros_like(y), cache, rng.standard_normal((1, N, 4)))
        assert len(np.unique(dx[0])) == N
        assert len(np.unique(dstate[0, :, 0])) == N
    layer = make("gru", "layer", sizes=(1, 4))
    y, _, cache = layer.forward(x)
    dx, _, _ = layer.backward(rng.standard_normal(y.shape), cache)
    assert len(np.unique(dx)) == dx.size


# ---- population ----------------------------------------------------------------------------------


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


# ---- what is kept between calls ------------------------------------------------------------------


@every_cell
@every_dtype
def test_changed_statistics_are_seen(cell, dtype):
    """By inference in the fused loop, which keeps factors made of them, whatever changes how."""
    rng = np.random.default_rng(0)
    rnn = make(cell, "batch", dtype=dtype)
    x = rng.standard_normal((T, N, I)).astype(dtype)
    site = next(iter(rnn.normalizers))
    norm = rnn.normalizers[site]
    state_dict = make(cell, "batch", dtype=dtype, seed=5).state_dict()

    def replace(array):
        norm.buffers["running_mean"] = array

    changes = [
        lambda: norm.running_mean.__iadd__(0.5),
        lambda: norm.running_var.__imul__(2),
        lambda: norm.running_var.__setitem__(-1, 7),
        lambda: norm.parameters["gain"].__imul__(3),
        lambda: norm.parameters.update(gain=norm.parameters["gain"] + 1),
        lambda: setattr(norm, "eps", 0.5),
        lambda: replace(norm.running_mean + 1),
        lambda: replace(np.repeat(norm.running_mean, 2, axis=1)[:, ::2] + 1),
        lambda: rnn.forward(x),
        lambda: rnn.load_state_dict(state_dict),
    ]
    last = rnn(x)[0]
    np.testing.assert_array_equal(rnn(x)[0], last)
    for change in changes:
        change()
        assert rnn.path.inference == "fused"
        actual = rnn(x)[0]
        assert not np.array_equal(actual, last)
        fresh = pickle.loads(pickle.dumps(rnn))
        for given in (x, x[:1]):
            expected = fresh(given, lengths=[len(given)] * N)[0]
            np.testing.assert_array_equal(rnn(given)[0], expected)
            for one in fresh._directions:
                one.may_fuse = False
            np.testing.assert_array_equal(fresh(given)[0], expected)
            for one in fresh._directions:
                one.may_fuse = True
        np.testing.assert_array_equal(rnn.step(x[0])[0], actual[0])
        last = actual
