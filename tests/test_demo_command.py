"""The demo from the command line: tiny runs, to pictures and figures."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

import normlib
from normlib.cli import main
from normlib.demo import experiment
from normlib.demo.train import Classifier, train
from normlib.diagnostics import HiddenState

pytest_plugins = ["plugins"]

TINY = ["demo", "--by", "row", "--hidden", "4", "--epochs", "1", "--seeds", "1", "--batch", "300"]


@pytest.fixture(autouse=True)
def not_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def demo(tmp_path):
    """Run the demo with these arguments; return the exit code and the figures."""

    def run(*arguments):
        code = main([*TINY, "--output", str(tmp_path / "out"), *arguments])
        return code, json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))

    return run


def test_a_run_writes_pictures_and_figures(demo, tmp_path, capsys):
    code, figures = demo("--epochs", "2", "--seeds", "2")
    assert code == 0
    for name in ("learning-curves.png", "hidden-state.png"):
        picture = imread(tmp_path / "out" / name)
        assert picture.shape[0] > 300
        assert picture.std() > 0.01

    assert figures.keys() == {"settings", "machine", "complete", "results"}
    assert figures["complete"] is True
    assert figures["machine"]["normlib"] == normlib.__version__
    assert list(figures["results"]) == ["noop", "batch", "layer"]
    for result in figures["results"].values():
        assert [run["seed"] for run in result["runs"]] == [0, 1]
        for run in result["runs"]:
            assert {len(curve) for curve in run["curves"].values()} == {2}
            assert run["final_test_accuracy"] == run["curves"]["test_accuracy"][-1]
            for moment in ("before", "after"):
                state = run["hidden_state"][moment]
                assert [len(state[name]) for name in HiddenState._fields] == [8, 8, 8, 8]
        mean = np.mean([run["final_test_accuracy"] for run in result["runs"]])
        np.testing.assert_allclose(result["summary"]["test_accuracy"], mean)

    output = capsys.readouterr().out
    assert "2 runs of 2 epochs" in output
    assert "batch  seed 1  epoch 2/2" in output
    for norm, result in figures["results"].items():
        accuracy = f"{result['summary']['test_accuracy']:.1%} ± "
        assert any(norm in line and accuracy in line for line in output.splitlines())
    assert "\x1b" not in output


def test_every_option_is_honoured(demo, monkeypatch):
    made, trained = [], []

    def spy(record, function):
        def call(*arguments, **options):
            record.append((arguments, options))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(experiment, "Classifier", spy(made, Classifier))
    monkeypatch.setattr(experiment, "train", spy(trained, train))
    code, figures = demo(
        *("--by", "pixel", "--cell", "gru", "--hidden", "5", "--epochs", "3", "--seeds", "2"),
        *("--batch", "700", "--learning-rate", "0.25", "--target", "0.05"),
        *("--norm", "layer", "--norm", "noop", "--norm", "layer"),
    )
    assert code == 0
    assert {arguments for arguments, _ in made} == {(1, 5, 64)}
    assert {options["cell"] for _, options in made} == {"gru"}
    expected = {"epochs": 3, "batch_size": 700, "learning_rate": 0.25}
    for place, (_, options) in enumerate(trained):
        assert options == {**expected, "seed": place // 2}
    assert list(figures["results"]) == ["layer", "noop"]
    assert figures["settings"]["target"] == 0.05
    assert figures["results"]["layer"]["summary"]["epochs_to_target"] in (1, 2, 3)


def test_a_plugin_by_name(demo, installer, capsys):
    source = "import normlib\nclass Plugged(normlib.LayerNorm):\n    pass\n"
    installer.install("plugged-norm", "plugged = plugged_norm:Plugged", plugged_norm=source)
    code, figures = demo("--norm", "plugged")
    assert code == 0
    assert list(figures["results"]) == ["plugged"]


def test_bars_in_a_terminal(demo, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    demo("--norm", "layer")
    output = capsys.readouterr().out
    assert "\x1b" in output
    assert "━" in output
    assert "layer  seed 0  epoch" not in output


def test_an_interrupted_run_is_summed_up(demo, monkeypatch, tmp_path, capsys):
    def interrupted(*arguments, **options):
        yield from train(*arguments, **options)
        if options["seed"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    code, figures = demo("--seeds", "3", "--norm", "layer", "--norm", "noop")
    assert code == 130
    assert figures["complete"] is False
    layer, noop = (figures["results"][norm] for norm in ("layer", "noop"))
    assert [run["seed"] for run in layer["runs"]] == [0, 1]
    assert layer["runs"][1]["hidden_state"]["after"] is None
    assert [run["seed"] for run in noop["runs"]] == [0]
    assert layer["summary"]["runs"] == noop["summary"]["runs"] == 1
    assert "Interrupted" in capsys.readouterr().out
    assert (tmp_path / "out" / "learning-curves.png").exists()


def test_interrupted_before_anything_was_done(demo, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupted)
    code, figures = demo()
    assert code == 130
    assert figures["results"] == {}
    assert "no epoch was completed" in capsys.readouterr().out


def test_interrupted_elsewhere(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("normlib.demo.experiment.run", interrupted)
    assert main(TINY) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_unknown_normalizer(tmp_path, capsys):
    arguments = [*TINY, "--output", str(tmp_path / "out"), "--norm", "layer", "--norm", "lyer"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("normlib demo: error: unknown normalizer 'lyer'. Did you mean 'layer'?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--hidden", "-1"),
        ("--seeds", "two"),
        ("--batch", "1.5"),
        ("--learning-rate", "0"),
        ("--learning-rate", "nan"),
        ("--learning-rate", "fast"),
        ("--target", "70"),
        ("--by", "column"),
        ("--cell", "transformer"),
    ],
)
def test_bad_values(capsys, option, value):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["demo", option, value])
    error = capsys.readouterr().err
    assert f"argument {option}: " in error
    assert value in error


def test_output_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*TINY, "--output", str(tmp_path / "file")]) == 1
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("sklearn", "scikit-learn"),
        ("matplotlib", "matplotlib"),
        ("rich", "rich"),
        ("threadpoolctl", "threadpoolctl"),
    ],
)
def test_missing_extra(monkeypatch, capsys, module, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name.startswith("normlib.demo"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(TINY) == 1
    error = capsys.readouterr().err
    assert package in error
    assert "pip install 'normlib[demo]'" in error
    assert len(error.splitlines()) == 1
