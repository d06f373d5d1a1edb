"""The gallery's experiments: their parts, tiny runs from end to end, and the results published."""

import doctest
import gzip
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import normlib
from gradcheck import assert_gradient

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
SCRIPTS = sorted(path for path in GALLERY.glob("*.py"))
TINY = {
    "alike": ["--updates", "20", "--hidden", "16"],
    "batch_size": ["--updates", "40", "--hidden", "8"],
    "convolutions": ["--updates", "20", "--channels", "4"],
    "dynamics": ["--hidden", "4", "--steps", "3"],
    "invariance": [],
    "longer": ["--updates", "2", "--hidden", "4", "--steps", "6", "--cases", "4"],
    "recurrent_pixels": ["--updates", "2", "--hidden", "4"],
    "recurrent_text": ["--updates", "2", "--hidden", "4", "--steps", "6", "--batch", "3"],
}

pytestmark = pytest.mark.usefixtures("gallery")


@pytest.fixture
def gallery(monkeypatch):
    """The gallery's folder on sys.path, as for a script in it."""
    monkeypatch.syspath_prepend(GALLERY)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        del sys.modules[name]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script; return the figures that it saved."""

    def run(name, *arguments, code=0):
        output = ["--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [name, *TINY[name], *arguments, *output])
        with pytest.raises(SystemExit, match=f"^{code}$"):
            runpy.run_path(str(GALLERY / f"{name}.py"), run_name="__main__")
        path = tmp_path / "out" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    return run


# ---- runs -----------------------------------------------------------------------------------


def test_every_script_is_tested():
    assert sorted(TINY) == [path.stem for path in SCRIPTS]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run(name, run, tmp_path, capsys):
    record = run(name, "--seeds", "2")
    assert record["name"] == name
    assert record["settings"]["seeds"] == 2
    assert record["machine"]["normlib"] == normlib.__version__
    assert record["claims"]
    assert imread(tmp_path / "out" / f"{name}.png").std() > 0.01
    rows = (tmp_path / "out" / f"{name}.rst").read_text(encoding="utf-8")
    for claim in record["claims"]:
        assert claim["measured"] in rows
    output = capsys.readouterr().out
    assert "1/" in output
    assert "\x1b" not in output


def test_a_bar_in_a_terminal(run, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    run("invariance")
    output = capsys.readouterr().out
    assert "━" in output
    assert "1/3  batch norm\n" not in output


def test_interrupted(run, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("normlib.layer_norm", interrupted)
    assert run("invariance", code=130) is None
    assert "nothing was saved" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [True, False])
def test_images_from_an_idx_file(packed, run, tmp_path, rng):
    images = rng.integers(0, 256, (60, 5, 4), dtype=np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 6)
    suffix = ".gz" if packed else ""
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        raw += array.tobytes()
        path = tmp_path / f"some-{name}{suffix}"
        path.write_bytes(gzip.compress(raw) if packed else raw)
    path = tmp_path / f"some-images-idx3-ubyte{suffix}"
    record = run("batch_size", "--data", str(path), "--seeds", "1")
    assert record["settings"]["data"] == path.name

    from experiments import data

    parts = data.images(path, seed=0)
    assert [len(part.pixels) for part in parts] == [48, 12]
    both = np.concatenate([part.pixels for part in parts])
    np.testing.assert_allclose(np.sort(both.ravel()), np.sort(images.ravel()) / 255, rtol=1e-6)


def test_what_is_no_idx_file(tmp_path):
    from experiments import data

    path = tmp_path / "images-idx3"
    path.write_bytes(b"something else")
    (tmp_path / "labels-idx1").write_bytes(b"")
    with pytest.raises(ValueError, match="not an IDX file"):
        data.images(path, seed=0)
    with pytest.raises(ValueError, match="no labels beside"):
        data.images(tmp_path / "other", seed=0)


def test_text_from_a_file(run, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(2000 * "all work and no play\n", encoding="utf-8")
    record = run("recurrent_text", "--data", str(path), "--seeds", "1")
    assert record["settings"]["data"] == "text.txt"


def test_text_is_split_and_shown_one_character_on(rng):
    from experiments.data import Text

    text = Text("abcd" * 3000 + "z" * 5000)
    assert text.vocabulary == 5
    part = text.sample(text.train, 6, 3, rng)
    assert (part.x.shape, part.labels.shape) == ((6, 3, 5), (6, 3))
    np.testing.assert_array_equal(part.x[1:].argmax(axis=2), part.labels[:-1])
    np.testing.assert_array_equal(part.x.sum(axis=2), 1)
    with pytest.raises(ValueError, match="too short for 2000 steps"):
        text.sample(text.test, 2000, 3, rng)


# ---- parts ----------------------------------------------------------------------------------


def in_double(layer):
    layer.parameters = {key: array.astype(float) for key, array in layer.parameters.items()}
    return layer


@pytest.mark.parametrize("norm", ["none", "layer", "batch", "group"])
def test_gradients_of_a_convolutional_network(norm, rng):
    from experiments.data import Part
    from experiments.network import (
        ChannelNorm,
        Convolution,
        Dense,
        Flatten,
        Network,
        Pool,
        Relu,
    )

    layers = [Convolution(2, 4, rng), ChannelNorm(norm, (4, 2, 6), 2), Relu(), Pool(2), Flatten()]
    layers.append(Dense(12, 10, rng))
    if norm == "none":
        del layers[1]
    network = Network([in_double(layer) for layer in layers])
    part = Part(rng.standard_normal((4, 2, 2, 6)), np.array([0, 9, 3, 3]))
    _, _, grads = network.loss_and_gradients(part)
    assert grads.keys() == network.parameters.keys()
    for name, array in network.parameters.items():
        assert_gradient(grads[name], lambda: network.loss_and_gradients(part)[0], array)


def test_a_convolution_is_one(rng):
    from experiments.network import Convolution

    layer = Convolution(2, 3, rng)
    x = rng.standard_normal((2, 2, 4, 5))
    y = layer(x)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.sum(padded[1, :, 2:5, 3:6] * layer.parameters["weight"][1])
    np.testing.assert_allclose(y[1, 1, 2, 3], expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_of_a_language_model(cell, rng):
    from experiments.data import Part
    from experiments.recurrent import LanguageModel

    model = LanguageModel(3, 2, 4, cell=cell, norm="layer", seed=0)
    model.rnn = normlib.RNN(3, 2, cell=cell, norm="layer", rng=0, dtype=np.float64)
    model.weight, model.bias = model.weight.astype(float), model.bias.astype(float)
    part = Part(np.eye(3)[rng.integers(0, 3, (4, 5))], rng.integers(0, 3, (4, 5)))
    loss, _, grads = model.loss_and_gradients(part)
    np.testing.assert_allclose(model.losses_by_step(part).mean(), loss)
    assert grads.keys() == model.parameters.keys()
    for name in ("weight", "bias", "weight_hh_l0", "norm_ih_l0.gain"):
        array = model.parameters[name]
        assert_gradient(grads[name], lambda: model.loss_and_gradients(part)[0], array)


def test_a_curve_says_when_it_was_down():
    from experiments.training import Curve

    curve = Curve(window=2, losses=[4.0, 2.0, 1.0, 1.0], seconds=[1.0, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(curve.smooth(), [4, 3, 1.5, 1])
    assert (curve.updates_to(1.5), curve.seconds_to(1.5)) == (3, 4)
    assert (curve.updates_to(0.5), curve.seconds_to(0.5)) == (np.inf, np.inf)


def test_a_batch_is_drawn_once_before_any_is_drawn_again(rng):
    from experiments.data import batches

    drawn = batches(10, 3, rng)
    first = np.concatenate([next(drawn) for _ in range(3)])
    assert len(set(first.tolist())) == 9
    assert len(next(drawn)) == 3
    assert len(next(batches(2, 3, rng))) == 2


def test_verdicts():
    from experiments.experiment import Claim, compare, mean_and_spread

    assert compare([1, 2], [2, 3]) == "holds"
    assert compare([2, 3], [2, 3]) == "does not hold"
    assert compare([1, 4], [2, 3]) == "undecided: less in 1 of 2 runs"
    assert compare([1, 2], [np.inf, np.inf]) == "holds"
    assert mean_and_spread([1.0]) == "1"
    assert mean_and_spread([1.0, np.inf]) == "not reached in 1 of 2 runs"
    with pytest.raises(ValueError, match="unknown verdict"):
        Claim("claim", "paper", "measured", "perhaps")


# ---- what is published ----------------------------------------------------------------------

RESULTS = sorted((GALLERY / "results").glob("*.json"))


def test_every_script_has_results():
    assert {path.stem for path in SCRIPTS} <= {path.stem for path in RESULTS}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_shown_as_they_were_saved(path):
    from experiments.experiment import Claim, table

    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["settings"]["seeds"] >= 3
    claims = [Claim(**claim) for claim in record["claims"]]
    assert path.with_suffix(".rst").read_text(encoding="utf-8") == table(claims)
    script = next(one for one in SCRIPTS if path.stem.startswith(one.stem))
    text = script.read_text(encoding="utf-8")
    for suffix in ("png", "rst"):
        assert f"/gallery/results/{path.stem}.{suffix}" in text
        assert path.with_suffix(f".{suffix}").exists()


def test_examples_in_docstrings():
    from experiments import experiment

    results = doctest.testmod(experiment)
    assert (results.failed, results.attempted > 4) == (0, True)
