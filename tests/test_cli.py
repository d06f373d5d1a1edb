"""The command line, all but the demo itself."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import normlib
from normlib.cli import main
from normlib.info import config


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


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["demo", "--help"]])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(arguments)
    assert capsys.readouterr().out.startswith("usage: normlib")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["info", "--xml"], "unrecognized arguments: --xml"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert message in capsys.readouterr().err
