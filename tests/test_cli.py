"""The command line, all but the demo itself."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import normlib
from normlib import registry, testing
from normlib.cli import main
from normlib.info import config

pytest_plugins = ["plugins"]


def test_info_names_what_is_installed(capsys):
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    for name in ("normlib", "CPU level", "OpenMP", "threads", "NumPy", "BLAS", "SciPy"):
        assert name in output
    assert normlib.__version__ in output


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == config()


def test_python_m_normlib():
    command = [sys.executable, "-m", "normlib", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["normlib"] == normlib.__version__


def test_the_console_script_is_main():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="normlib")
    assert script.load() is main


def test_only_the_demo_imports_its_packages():
    code = (
        "import sys, normlib.cli; normlib.cli.main(['info']);"
        "sys.exit(bool({'sklearn', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=True)


def test_a_reader_that_leaves_early_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "normlib", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 1


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"normlib {normlib.__version__}\n"


@pytest.mark.parametrize("command", [[], ["info"], ["list"], ["check"], ["bench"], ["demo"]])
def test_help_gives_examples(capsys, command):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--help"])
    output = capsys.readouterr().out
    assert output.startswith(" ".join(["usage: normlib", *command]))
    assert " ".join(["examples:\n  normlib", *command]) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["info", "--xml"], "unrecognized arguments: --xml"),
        (["check"], "required: MODULE:NAME"),
        (["check", "layer", "--features", "0"], "whole number of at least 1; got 0"),
        (["bench", "--seconds", "-1"], "must be a number above 0; got -1"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert message in capsys.readouterr().err


# ---- list -----------------------------------------------------------------------------------


def listed(capsys):
    assert main(["list", "--json"]) == 0
    return {row.pop("name"): row for row in json.loads(capsys.readouterr().out)}


def test_list_has_every_name(capsys):
    rows = listed(capsys)
    assert list(rows) == normlib.available()
    assert rows["layer"] == {
        "source": "normlib.normalizers.layer:LayerNorm",
        "per_sample": True,
        "compiled": True,
        "error": None,
    }
    assert (rows["batch"]["per_sample"], rows["batch"]["compiled"]) == (False, True)
    assert (rows["noop"]["per_sample"], rows["noop"]["compiled"]) == (True, True)


def test_list_as_a_table(capsys):
    assert main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "source", "per", "sample", "compiled"]
    assert [line.split()[0] for line in lines] == normlib.available()
    assert lines[normlib.available().index("batch")].split()[2:] == ["no", "yes"]


def test_list_shows_plugins_also_broken_ones(installer, capsys):
    source = """
        import normlib
        class Inherits(normlib.LayerNorm):
            pass
        class Plain(normlib.Normalizer):
            per_sample = False
            def forward(self, x, *, step=0, mask=None):
                pass
            def backward(self, dy, cache):
                pass
        class Overrides(Inherits):
            def forward(self, x, *, step=0, mask=None):
                pass
        class Offers(Plain):
            def row_functions(self, *, training):
                pass
    """
    names = "inherits = listed_norms:Inherits\nplain = listed_norms:Plain\n"
    names += "overrides = listed_norms:Overrides\noffers = listed_norms:Offers\n"
    names += "broken = listed_norms:Missing"
    installer.install("listed-norms", names, listed_norms=source)
    rows = listed(capsys)
    assert rows["inherits"]["source"] == "listed_norms:Inherits (distribution listed-norms)"
    names = ("inherits", "plain", "overrides", "offers")
    assert [rows[name]["compiled"] for name in names] == [True, False, False, True]
    assert rows["plain"]["per_sample"] is False
    assert rows["broken"]["per_sample"] is None
    assert "cannot load the normalizer 'broken'" in rows["broken"]["error"]
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    assert "broken cannot be used: cannot load the normalizer" in output


def test_list_survives_plugins_that_print_and_exit(installer, capsys):
    source = "print('loud')\nraise SystemExit(0)"
    installer.install("exits", "exits = exiting_norm:N", exiting_norm=source)
    assert "SystemExit: 0" in listed(capsys)["exits"]["error"]


def test_list_shows_all_who_offer_a_name(installer, capsys):
    installer.install("one", "twice = one_norm:N", one_norm="")
    installer.install("two", "twice = two_norm:N", two_norm="")
    row = listed(capsys)["twice"]
    for part in ("one_norm:N (distribution one)", "two_norm:N (distribution two)"):
        assert part in row["source"]
        assert part in row["error"]


# ---- check ----------------------------------------------------------------------------------

OWN = """
import normlib


class Good(normlib.LayerNorm):
    pass


class Outer:
    Good = Good


class Wrong(normlib.LayerNorm):
    def backward(self, dy, cache):
        dx, grads = super().backward(dy, cache)
        return 2 * dx, grads


def factory(features, **config):
    return Good(features, **config)


def unusable(features, **config):
    return None


not_a_norm = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "own_norm.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path / "own_norm.py"
    assert sys.path == path
    sys.modules.pop("own_norm", None)


@pytest.mark.parametrize("name", ["own_norm:Good", "own_norm:Outer.Good", "own_norm:factory"])
def test_check_passes(own, capsys, name):
    assert main(["check", name]) == 0
    output = capsys.readouterr().out
    assert [line.split()[1] for line in output.splitlines()[:-1]] == list(testing.CHECKS)
    assert output.endswith(f"{name} passes all {len(testing.CHECKS)} checks.\n")


def test_check_of_a_file_and_of_a_registered_name(own, capsys):
    rest = [name for name in testing.CHECKS if name not in ("interface", "copies")]
    skip = [argument for name in rest for argument in ("--skip", name)]
    assert main(["check", f"{own}:Good", "--features", "3", *skip]) == 0
    assert main(["check", "layer", *skip]) == 0
    assert "layer passes all 2 checks." in capsys.readouterr().out


def test_check_fails(own, capsys):
    assert main(["check", "own_norm:Wrong", "--json", "--skip", "in_rnn"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["normalizer"] == "own_norm:Wrong"
    assert "gradients" in report["failures"]
    together = {*report["passed"], *report["failures"]}
    assert together == testing.CHECKS.keys() - {"in_rnn"}

    assert main(["check", "own_norm:Wrong"]) == 1
    output = capsys.readouterr().out
    assert "FAILED  gradients: " in output
    assert "passed  interface" in output
    assert "own_norm:Wrong fails " in output


def test_check_stops_where_there_is_no_interface(own, capsys):
    assert main(["check", "own_norm:unusable", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] == []
    assert list(report["failures"]) == ["interface"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_norm:Bad", "module own_norm has no 'Bad'"),
        ("own_norm:not_a_norm", "a normalizer must be given as"),
        ("no_such_module:X", "cannot import 'no_such_module': ModuleNotFoundError"),
        ("missing.py:X", "cannot import 'missing.py'"),
        (":X", "cannot import ''"),
        ("lyer", "Did you mean 'layer'?"),
    ],
)
def test_check_of_what_is_not_there(own, capsys, name, message):
    assert main(["check", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("normlib check: error: ")
    assert message in captured.err


def test_check_of_a_script_that_exits(own, capsys):
    own.write_text(f"{OWN}\nraise SystemExit(0)\n")
    assert main(["check", "own_norm:Good"]) == 2
    assert "cannot import 'own_norm': SystemExit: 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["json", "sys"])
def test_check_of_a_file_named_like_another_module(own, capsys, name):
    own.rename(own.parent / f"{name}.py")
    assert main(["check", f"{name}.py:Good"]) == 2
    assert f"there is another module '{name}' already, from " in capsys.readouterr().err


def test_json_stays_whole_where_the_normalizer_prints(own, capsys):
    lines = ["class Loud(Good):", "    def __init__(self, *a, **k):", "        print('made')"]
    lines += ["        super().__init__(*a, **k)", "print('imported')"]
    own.write_text(OWN + "\n".join(lines))
    rest = [name for name in testing.CHECKS if name != "interface"]
    skip = [argument for name in rest for argument in ("--skip", name)]
    assert main(["check", "own_norm:Loud", "--json", *skip]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"] == ["interface"]
    assert captured.err.startswith("imported\nmade\n")


def test_check_refuses_to_skip_what_is_no_check(capsys):
    assert main(["check", "layer", "--skip", "gradient"]) == 2
    assert "unknown check 'gradient'" in capsys.readouterr().err


def test_check_finds_modules_of_the_current_folder_as_a_script(own):
    code = "import sys, normlib.cli; sys.path.pop(0); sys.exit(normlib.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "check", "own_norm:Good", "--skip", "in_gru"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- bench ----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("normlib.cli.bench.SHAPES", ((4, 16), (8, 16)))
    monkeypatch.setattr("normlib.cli.bench.PRODUCT", (4, 8, 16))
    monkeypatch.setattr("normlib.cli.bench.SQUARES", (8, 16))


def test_bench_as_json(small, capsys):
    assert main(["bench", "--seconds", "0.01", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"] == config()
    operations = [row["operation"] for row in report["results"]]
    assert operations.count("layer norm") == operations.count("copy") == 2
    assert operations[-2:] == ["matrix product, BLAS", "RNN's product"]
    for row in report["results"]:
        assert row["seconds"] > 0
        elements = 2 * 4 * row["shape"][0] * row["shape"][1]
        if row["operation"] in ("copy", "layer norm"):
            assert row["rate"] == pytest.approx(elements / row["seconds"] / 1e9)
        assert (row["share"] is None) == (row["operation"] in ("copy", "matrix product, BLAS"))
    product = report["results"][-1]
    assert product["rate"] == pytest.approx(2e-9 * 4 * 8 * 16 / product["seconds"])


def test_bench_as_a_table(small, capsys):
    assert main(["bench", "--seconds", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"normlib {normlib.__version__}")
    assert len(lines) == 2 + 2 * 5 + 2
    assert "GB/s" in lines[2]
    assert lines[2].endswith("limit")
    assert "GFLOP/s" in lines[-1]
    assert lines[-1].endswith("%")


def test_sources_of_what_was_chosen(monkeypatch, installer):
    installer.install("other", "layer = other_norm:N", other_norm="")
    assert registry.sources("layer") == [
        "normlib.normalizers.layer:LayerNorm",
        "other_norm:N (distribution other)",
    ]
    assert registry.sources("nothing") == []
