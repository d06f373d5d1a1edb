"""The parts of the demo: data, optimizer, training, results, pictures."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gradcheck import assert_gradient
from normlib.demo import plots
from normlib.demo.data import Digits, load
from normlib.demo.optimizer import Adam, clip
from normlib.demo.results import Run, as_dict, summarize
from normlib.demo.train import Classifier, Epoch, train
from normlib.diagnostics import HiddenState


def made_up_run(norm, seed, accuracies, *, complete=True):
    state = HiddenState(*np.array([[1.0, 1.0], [0.0, 0.1], [0.2, 0.3], [0.0, 0.0]]))
    epochs = [Epoch(1.0 - a, a, a, 0.5 + seed) for a in accuracies]
    return Run(norm, seed, state, epochs, state if complete else None)


# ---- data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "n_steps", "size"), [("pixel", 64, 1), ("row", 8, 8)])
def test_sequences_show_the_images_in_reading_order(by, n_steps, size):
    for part, n_images in zip(load(by), (1437, 360), strict=True):
        assert part.x.shape == (n_steps, n_images, size)
        assert part.x.dtype == np.float32
        assert (part.x.min(), part.x.max()) == (0, 1)
    images, labels = load_digits(return_X_y=True)
    _, test = load(by)
    for n in range(3):
        pixels = test.x[:, n].ravel() * 16
        (found,) = np.flatnonzero(np.all(images == pixels, axis=1))
        assert labels[found] == test.labels[n]


def test_the_split_is_disjoint_and_whole():
    images, _ = load_digits(return_X_y=True)
    train_part, test_part = load("row", seed=3)

    def counts(*parts):
        rows = (np.rint(16 * part).astype(int).reshape(len(part), -1) for part in parts)
        return Counter(row.tobytes() for array in rows for row in array)

    sequences = (part.x.swapaxes(0, 1) for part in (train_part, test_part))
    assert counts(*sequences) == counts(images / 16)


def test_the_split_is_stratified_and_seeded():
    _, labels = load_digits(return_X_y=True)
    parts = load("row", seed=3)
    expected = np.bincount(labels) / 5
    assert np.all(np.abs(np.bincount(parts[1].labels) - expected) <= 1)
    np.testing.assert_array_equal(load("row", seed=3)[1].x, parts[1].x)
    assert not np.array_equal(load("row", seed=4)[1].labels, parts[1].labels)


# ---- optimizer ------------------------------------------------------------------------------


def test_the_optimizer_needs_no_extra():
    extras = dict.fromkeys(("sklearn", "matplotlib", "rich", "threadpoolctl"))
    code = f"import sys; sys.modules.update({extras}); import normlib.demo.optimizer"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adam_takes_the_steps_worked_out_by_hand():
    parameter = np.array([1.0])
    adam = Adam({"p": parameter}, 0.1, betas=(0.5, 0.75), eps=0.25)
    # m = 1, v = 1; both divided by 1 - beta they are 2 and 4: 1 - 0.1 * 2 / (2 + 0.25)
    adam.step({"p": np.array([2.0])})
    np.testing.assert_allclose(parameter, 1 - 0.2 / 2.25, rtol=1e-14)
    # m = 0.5 - 2 = -1.5, v = 0.75 + 4 = 4.75; divided by 0.75 and 0.4375
    adam.step({"p": np.array([-4.0])})
    second = 0.1 * -2 / (np.sqrt(4.75 / 0.4375) + 0.25)
    np.testing.assert_allclose(parameter, 1 - 0.2 / 2.25 - second, rtol=1e-14)


def test_clip_scales_all_gradients_by_their_common_norm():
    grads = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.0]], np.float32)}
    clipped = clip(grads, 2.5)
    np.testing.assert_allclose(clipped["a"], [1.5, 0])
    np.testing.assert_allclose(clipped["b"], [[2]])
    assert clipped["a"].dtype == np.float32
    np.testing.assert_array_equal(clip(grads, 5.5)["a"], grads["a"])


# ---- training -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_gradients_are_those_of_the_loss(cell, rng):
    classifier = Classifier(2, 3, 4, cell=cell, norm="layer", seed=0, dtype=np.float64)
    digits = Digits(rng.standard_normal((4, 5, 2)), np.array([0, 9, 3, 3, 1]))
    _, _, grads = classifier.loss_and_gradients(digits)
    assert grads.keys() == classifier.parameters.keys()
    for name in ("weight", "bias", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"):
        array = classifier.parameters[name]
        assert_gradient(grads[name], lambda: classifier.loss_and_gradients(digits)[0], array)


def test_loss_and_accuracy(rng):
    classifier = Classifier(1, 3, 2, cell="rnn", norm="noop", seed=0, dtype=np.float64)
    digits = Digits(rng.standard_normal((2, 50, 1)), rng.integers(0, 10, 50))
    loss, accuracy, _ = classifier.loss_and_gradients(digits)
    scores = classifier(digits.x)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.mean(np.log(p[np.arange(50), digits.labels])))
    assert accuracy == classifier.accuracy(digits) == np.mean(p.argmax(axis=1) == digits.labels)


def test_normalizers_start_from_the_same_weights():
    noop, batch = (Classifier(1, 3, 8, cell="gru", norm=n, seed=5) for n in ("noop", "batch"))
    for name, array in noop.parameters.items():
        np.testing.assert_array_equal(array, batch.parameters[name])
    other = Classifier(1, 3, 8, cell="gru", norm="noop", seed=6)
    assert not np.array_equal(noop.weight, other.weight)


def test_batch_norm_has_statistics_for_each_time_step():
    classifier = Classifier(1, 3, 8, cell="lstm", norm="batch", seed=0)
    assert classifier.rnn.normalizers["norm_c_l0"].running_mean.shape == (8, 3)


def test_the_hidden_state_is_measured_over_images_and_units(rng):
    classifier = Classifier(2, 3, 4, cell="lstm", norm="batch", seed=0)
    x = rng.standard_normal((4, 10, 2)).astype(np.float32)
    before = classifier.rnn.state_dict()
    state = classifier.hidden_state(x)
    for name, array in classifier.rnn.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    y, _, _ = classifier.rnn.forward(x)
    for step in range(4):
        np.testing.assert_allclose(state.mean[step], y[step].mean(), atol=1e-6)
        np.testing.assert_allclose(state.spread[step], y[step].std(), rtol=1e-5)


@pytest.mark.parametrize("norm", ["noop", "batch", "layer"])
def test_it_learns_to_read(norm):
    digits, test = load("row")
    classifier = Classifier(8, 32, 8, cell="gru", norm=norm, seed=0)
    settings = {"epochs": 5, "batch_size": 32, "learning_rate": 0.01, "seed": 0}
    epochs = list(train(classifier, digits, test, **settings))
    assert len(epochs) == 5
    assert epochs[-1].loss < epochs[0].loss / 2
    assert epochs[-1].train_accuracy > 0.8
    assert epochs[-1].test_accuracy == classifier.accuracy(test) > 0.8
    assert all(epoch.seconds > 0 for epoch in epochs)


def test_training_is_reproducible_and_takes_every_image_once(monkeypatch):
    digits, test = load("row")
    sizes = []
    compute = Classifier.loss_and_gradients

    def spy(self, part):
        sizes.append(len(part.labels))
        return compute(self, part)

    monkeypatch.setattr(Classifier, "loss_and_gradients", spy)
    losses = []
    for seed in (1, 1, 2):
        classifier = Classifier(8, 4, 8, cell="rnn", norm="layer", seed=0)
        settings = {"epochs": 1, "batch_size": 500, "learning_rate": 0.01, "seed": seed}
        losses += [epoch.loss for epoch in train(classifier, digits, test, **settings)]
    assert sizes == 3 * [500, 500, 437]
    assert losses[0] == losses[1] != losses[2]


# ---- results --------------------------------------------------------------------------------


def test_summary():
    runs = [
        made_up_run("layer", 0, [0.5, 0.7, 0.6]),
        made_up_run("noop", 0, [0.1, 0.2, 0.3]),
        made_up_run("layer", 1, [0.7, 0.7, 0.8]),
        made_up_run("layer", 2, [0.9], complete=False),
    ]
    layer, noop = summarize(runs, 0.7)
    assert (layer.norm, layer.runs, layer.epochs_to_target) == ("layer", 2, 2)
    np.testing.assert_allclose(layer.test_accuracy, 0.7)
    np.testing.assert_allclose(layer.spread, np.std([0.6, 0.8], ddof=1))
    np.testing.assert_allclose(layer.seconds_per_epoch, 1.0)
    assert (noop.runs, noop.spread, noop.epochs_to_target) == (1, None, None)


def test_target_reached_in_half_of_the_runs_is_not_reached():
    runs = [made_up_run("layer", 0, [0.9]), made_up_run("layer", 1, [0.1])]
    assert summarize(runs, 0.5)[0].epochs_to_target is None


def test_divergence_is_null_in_json():
    run = made_up_run("noop", 0, [0.1])
    run.epochs[0] = Epoch(np.nan, 0.1, 0.1, 1.0)
    figures = json.loads(json.dumps(as_dict([run], 0.5), allow_nan=False))
    assert figures["noop"]["runs"][0]["curves"]["loss"] == [None]


# ---- pictures -------------------------------------------------------------------------------


@pytest.fixture
def figure(monkeypatch):
    """The matplotlib figures that are saved, in a list."""
    figures = []
    save = plots.Figure.savefig

    def spy(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(plots.Figure, "savefig", spy)
    return figures


def test_learning_curves_show_the_mean_of_the_runs(figure, tmp_path):
    runs = [made_up_run("layer", 0, [0.5, 0.7]), made_up_run("layer", 1, [0.7, 0.8])]
    runs += [made_up_run(f"other-{i}", 0, [0.1, 0.2]) for i in range(7)]
    plots.learning_curves(runs, "Title", tmp_path / "p.png")
    loss, accuracy = figure[0].axes
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == ["layer"] + [f"other-{i}" for i in range(7)]
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[1, 0.4], [2, 0.25]])
    np.testing.assert_allclose(accuracy.lines[0].get_xydata(), [[1, 0.6], [2, 0.75]])


def test_hidden_states_before_and_after(figure, tmp_path):
    runs = [made_up_run("layer", 0, [0.5]), made_up_run("noop", 0, [0.7], complete=False)]
    plots.hidden_states(runs, "Title", tmp_path / "p.png")
    lines = [len(axes.lines) for axes in figure[0].axes]
    assert lines == [1, 1, 1, 0]  # before training in the first row; the last has not ended
    np.testing.assert_allclose(figure[0].axes[0].lines[0].get_xydata(), [[1, 0], [2, 0.1]])
    box = figure[0].axes[0].collections[0].get_datalim(figure[0].axes[0].transData)
    np.testing.assert_allclose([box.y0, box.y1], [-0.2, 0.4])
