"""The choice of the kernels' build, and what show_config says of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import normlib
from normlib import _kernels
from normlib.info import config


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", "import normlib; normlib.show_config()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_best_level_is_chosen():
    result = run(NORMLIB_CPU="")
    assert f"CPU level  {_kernels.available_levels()[-1]} " in result.stdout


@pytest.mark.parametrize("level", _kernels.available_levels())
def test_a_level_can_be_forced(level):
    result = run(NORMLIB_CPU=level)
    assert f"CPU level  {level} " in result.stdout


def test_an_unknown_level_is_an_error():
    result = run(NORMLIB_CPU="v9")
    assert result.returncode != 0
    assert "NORMLIB_CPU must be one of baseline, v3, v4; got 'v9'" in result.stderr


def test_a_level_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setattr(_kernels.cpu, "supported_levels", lambda: ["baseline", "v3"])
    with pytest.raises(ImportError, match=r"NORMLIB_CPU=v4 cannot run here: .* offer baseline, v3"):
        _kernels.choose_level("v4")


def test_a_level_that_was_not_built_is_an_error(monkeypatch):
    monkeypatch.setattr(_kernels, "is_built", lambda level: level == "baseline")
    monkeypatch.setattr(_kernels.cpu, "supported_levels", lambda: ["baseline", "v3"])
    with pytest.raises(ImportError, match="NORMLIB_CPU=v3 is not in this build"):
        _kernels.choose_level("v3")
    assert _kernels.choose_level(None) == "baseline"


def test_no_build_at_all_says_how_to_build(monkeypatch):
    monkeypatch.setattr(_kernels, "_is_built", lambda module: False)
    assert _kernels.available_levels() == []
    for forced in (None, "v3"):
        with pytest.raises(
            ImportError, match=r"no compiled kernels for this CPU\. Build them with"
        ):
            _kernels.choose_level(forced)


def test_a_source_folder_without_a_build_says_how_to_build(tmp_path):
    package = Path(_kernels.__file__).parent
    target = tmp_path / "normlib" / "_kernels"
    target.mkdir(parents=True)
    (target.parent / "__init__.py").touch()
    shutil.copy(package / "__init__.py", target)
    result = subprocess.run(
        [sys.executable, "-c", "import normlib._kernels"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: normlib has no compiled kernels. Build them with" in result.stderr


def test_a_level_that_is_built_in_part_is_an_error(monkeypatch):
    monkeypatch.setattr(
        _kernels, "_is_built", lambda module: module not in ("v3.cells", "v3.product")
    )
    monkeypatch.setattr(_kernels.cpu, "supported_levels", lambda: ["baseline", "v3"])
    for forced in (None, "v3"):
        with pytest.raises(ImportError, match="v3 are not all built: cells, product missing"):
            _kernels.choose_level(forced)
    assert _kernels.choose_level("baseline") == "baseline"


def test_every_kernel_is_expected():
    sources = Path(_kernels.__file__).parent.glob("*.pyx")
    assert sorted(_kernels.KERNELS) == sorted(
        {path.stem for path in sources} - {"buffers", "changes", "cpu"}
    )


def test_config_names_every_part(capsys):
    normlib.show_config()
    printed = capsys.readouterr().out
    values = config()
    for key in ("normlib", "cpu_level", "threads", "numpy", "scipy", "blas"):
        assert str(values[key]) in printed


def test_a_build_without_openmp_says_so(capsys, monkeypatch):
    monkeypatch.setattr(_kernels.cpu, "openmp", lambda: 0)
    normlib.show_config()
    printed = capsys.readouterr().out
    assert "none: this build runs on one thread" in printed
    assert "threads    1\n" in printed
