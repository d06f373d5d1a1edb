"""The benchmarks: what they count and write. No test here is about speed."""

import itertools
import json
import math
import re
import sys
import time

import numpy as np
import pytest

from benchmarks import plugin, thresholds
from benchmarks.__main__ import main
from benchmarks.cases import GROUPS, OPS, Case, check, expected, parse_shape, select
from benchmarks.peers import PEERS, SCRIPTED, absent, create, table
from benchmarks.report import markdown
from benchmarks.results import Report, Result, geometric_mean, machine, summarize
from benchmarks.timing import race
from benchmarks.worker import measure, worker
from normlib import registry

TINY = Case("layer_norm_out", (4, 16), "float32")
# The others compile for too long. They are checked whenever they are timed.
QUICK_TO_START = [name for name in PEERS if not absent(name) and name not in {"JAX", "numba"}]


def result(ours, others, *, copies=None, case=TINY, threads=1, failures=None):
    return Result(case, threads, {"normlib": ours, **others}, copies or {}, failures or {})


def layer_result(ours, others, plain, *, peak=1.0, shape=(3, 2, 4, 5)):
    case = Case("lstm_layer", shape, "float32")
    seconds = {"normlib": ours, **others}
    return Result(case, 1, seconds, {"NumPy": peak}, beside=plain, loop="fused")


# ---- cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"), [("512x768", (512, 768)), ("32X64x56x56", (32, 64, 56, 56))]
)
def test_a_shape_is_read(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "512", "3x4x5", "0x8", "-1x8", "axb", "4x"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match="a shape is ROWSxFEATURES"):
        parse_shape(text)


def test_an_operation_gets_only_shapes_that_it_can_take():
    shapes = [(1, 8), (4, 8), (2, 3, 4, 5)]
    cases = select(["layer_norm_backward", "batch_norm_backward"], shapes)
    assert {(case.op, case.shape) for case in cases} == {
        ("layer_norm_backward", (1, 8)),
        ("layer_norm_backward", (4, 8)),
        ("batch_norm_backward", (4, 8)),  # one row has no variance
        ("batch_norm_backward", (2, 3, 4, 5)),
    }


def test_cases_of_a_shape_come_together():
    cases = select(GROUPS["norms"])
    arrays = [(case.shape, case.dtype) for case in cases]
    changes = sum(a != b for a, b in itertools.pairwise(arrays))
    assert changes == len(set(arrays)) - 1


def test_bytes_are_those_of_each_array_once():
    assert Case("layer_norm", (4, 16), "float32").work == 2 * 4 * 16 * 4
    assert Case("layer_norm_backward", (4, 16), "float64").work == 3 * 4 * 16 * 8


def test_operations_of_a_recurrent_network_are_those_of_its_products():
    shape = (3, 2, 4, 5)
    forward = 2 * 3 * 2 * (4 + 5) * 5
    assert Case("rnn", shape, "float32").work == forward
    assert Case("gru_layer", shape, "float32").work == 3 * forward
    assert Case("lstm_training", shape, "float32").work == 3 * 4 * forward


def test_quick_and_fixed_shapes():
    assert [c.shape for c in select(["lstm_step"], [(3, 2, 4, 5)])] == [(1, 1, 64, 64)]
    assert [c.shape for c in select(["call"], quick=True)] == [(1, 8)]
    assert [c.shape for c in select(["lstm"], [(8, 16)])] == []
    quick = select(GROUPS["rnn"], quick=True)
    assert {c.op for c in quick} == set(GROUPS["rnn"])
    assert len(quick) < len(select(GROUPS["rnn"])) / 3


@pytest.mark.parametrize("offset", [0, 16])
def test_arrays_begin_where_they_are_told(offset):
    inputs = TINY.inputs(offset)
    assert {array.ctypes.data % 64 for array in inputs if array is not inputs.var} == {offset}


# ---- the check -----------------------------------------------------------------------------------


def test_contestants_agree_with_the_oracle():
    with worker(QUICK_TO_START, 1) as run:
        for case in select(GROUPS["norms"], [(6, 24), (5, 3, 4, 2)]):
            measured = run(case, 0.0)
            assert not measured.failures
            assert "normlib" in measured.seconds


@pytest.mark.skipif(
    bool(absent("PyTorch") or absent("ONNX Runtime")), reason="needs torch, onnx, onnxruntime"
)
def test_recurrent_contestants_agree_with_the_oracle():
    took_part = {}
    with worker(["normlib", "PyTorch", *SCRIPTED, "ONNX Runtime", "NumPy"], 1) as run:
        for case in select(GROUPS["rnn"], [(4, 3, 5, 6)]):
            measured = run(case, 0.0)
            assert not measured.failures
            assert set(measured.roofs) == {"normlib", "PyTorch", "NumPy"}
            took_part[case.op] = {*measured.seconds} - {"normlib"}, {*measured.beside}
            assert measured.loop in {"fused", "stepwise"}
            assert "normlib" in measured.seconds
    both = {"PyTorch", "ONNX Runtime"}
    assert took_part["lstm"] == took_part["rnn"] == (both, set())
    assert took_part["lstm_layer"] == took_part["gru_layer"] == ({*SCRIPTED}, both)
    assert took_part["lstm_batch"] == took_part["rnn_layer"] == (set(), both)
    assert took_part["gru_layer_training"] == ({*SCRIPTED}, {"PyTorch"})
    assert took_part["lstm_batch_training"] == (set(), {"normlib"})
    assert took_part["lstm_step"] == ({"PyTorch"}, set())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda y: y + 0.01, "off by"),
        (lambda y: np.where(y == y.max(), np.nan, y).astype(y.dtype), "off by nan"),
        (lambda y: y.astype(np.float64), "dtype float64"),
        (lambda y: y[:1], "shape"),
    ],
    ids=["wrong", "nan", "dtype", "shape"],
)
def test_a_wrong_output_is_found(spoil, complaint):
    right = expected(TINY)
    y = right[0].astype(np.float32)
    assert check(TINY, [y], right) is None
    assert complaint in check(TINY, [spoil(y)], right)
    assert "outputs instead of 1" in check(TINY, [y, y], right)


class Wrong(table.Peer):
    def layer_norm_out(self, inputs):
        return lambda: inputs.x


class Broken(table.Peer):
    def layer_norm_out(self, inputs):
        raise RuntimeError("no such kernel\nand more")


def test_a_wrong_contestant_is_reported_and_not_timed():
    peers = {"NumPy": create("NumPy", 1), "PyTorch": Wrong(1), "JAX": Broken(1)}
    measured = measure(TINY, peers, 1, 0.01)
    assert set(measured.seconds) == {"NumPy"}
    assert "off by" in measured.failures["PyTorch"]
    assert measured.failures["JAX"] == "RuntimeError: no such kernel"
    text = markdown(Report({"CPU": "any"}, [measured]))
    assert "PyTorch failed: output 0 is off by" in text
    assert "| failed |" in text


# ---- arithmetic ----------------------------------------------------------------------------------


def test_a_ratio_is_their_time_by_ours():
    measured = result(2.0, {"PyTorch": 3.0, "ONNX Runtime": 2.5, "numba": 1.0})
    assert measured.ratio("PyTorch") == 1.5
    assert measured.ratio("SciPy") is None
    assert (measured.rival, measured.lead) == ("ONNX Runtime", 1.25)
    assert result(2.0, {"numba": 1.0}).rival == "numba"  # neither of the two is there
    assert result(2.0, {}).lead is None


def test_training_with_batch_norm_is_compared_with_that_with_layer_norm():
    case = Case("lstm_batch_training", (4, 3, 5, 6), "float32")
    slow, right = (Result(case, 1, {"normlib": 2.0}, {}, beside={"normlib": s}) for s in (1, 1.4))
    (own,) = summarize([slow, right])
    assert (own.goal, own.worst.ratio, own.worst.goal, own.losses) == (0.6, 0.5, 0.6, 1)
    text = markdown(Report({"CPU": "any"}, [slow, right]))
    assert "**0.50**" in text
    assert "**0.70**" not in text
    assert own.title.endswith("to a layer-normalized one")
    assert own.worst.rival == "normlib, layer-normalized"
    assert not case.operation.fits((4, 1, 5, 6))
    assert all(shape[1] > 1 for shape in case.operation.shapes)


def test_speeds_are_of_the_bytes_to_move():
    measured = result(1e-6, {"PyTorch": 2e-6}, copies={"NumPy": 1e-6, "PyTorch": 0.5e-6})
    assert measured.speed() == pytest.approx(0.512)
    assert measured.roof == pytest.approx(1.024)
    assert measured.of_roof() == pytest.approx(0.5)
    assert measured.of_roof("PyTorch") == pytest.approx(0.25)


def test_a_normalized_network_is_compared_with_the_plain_ones():
    measured = layer_result(2.0, {"PyTorch": 8.0}, {"PyTorch": 3.0, "ONNX Runtime": 1.0}, peak=0.5)
    assert measured.lead == 4.0
    assert (measured.plain_rival, measured.plain_lead) == ("ONNX Runtime", 0.5)
    share = measured.of_roof()
    assert share == pytest.approx(measured.case.work / 2.0 / (2 * 512**3 / 0.5))
    assert measured.plain_of_roof("ONNX Runtime") == pytest.approx(2 * share)
    assert measured.plain_of_roof("JAX") is None
    own, plain = summarize([measured])
    assert (own.mean, own.losses, own.goal, own.worst.goal) == (4.0, 0, 2.3, 1.3)
    assert (plain.mean, plain.losses, plain.worst.rival) == (0.5, 1, "ONNX Runtime, plain")
    assert (plain.goal, plain.worst.goal) == (1.1, 1.0)
    assert layer_result(1.0, {}, {}).plain_lead is None


def test_layer_normalized_networks_are_compared_with_both_forms_of_torchscript():
    measured = layer_result(1.0, {"TorchScript": 4.0, "TorchScript at once": 2.0}, {})
    assert (measured.rival, measured.lead) == ("TorchScript at once", 2.0)
    titles = [(one.title.partition(", ")[2], one.mean) for one in summarize([measured])]
    assert titles == [("", 2.0), ("to TorchScript", 4.0), ("to TorchScript at once", 2.0)]


def test_the_goal_is_less_where_the_rival_is_as_fast_as_a_copy():
    assert result(1.0, {"PyTorch": 1.1}, copies={"NumPy": 1.0}).goal == 1.05
    assert result(1.0, {"PyTorch": 1.1}, copies={"NumPy": 0.5}).goal == 1.15


def test_means_are_geometric():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(10.0)


def test_a_summary_has_mean_floor_and_losses():
    results = [result(1.0, {"PyTorch": ratio}) for ratio in (0.5, 4.0)]
    results.append(result(1.0, {"PyTorch": 9.0}, threads=2))
    one, two = summarize(results)
    assert (one.threads, one.losses, one.shapes) == (1, 1, 2)
    assert one.mean == pytest.approx(math.sqrt(2))
    assert one.worst == (0.5, 1.15, (4, 16), "PyTorch")
    assert (two.threads, two.losses, two.mean) == (2, 0, pytest.approx(9.0))


def test_all_contestants_of_a_race_are_timed():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timed = race(runs, 0.01, pause=False)
    assert set(timed.seconds) == set(calls) == {"a", "b"}
    assert all(seconds > 0 for seconds in timed.seconds.values())
    assert race({}, 0.01, pause=False).seconds == {}


def test_what_others_left_in_the_cache_does_not_count():
    calls = []

    def run(name):
        time.sleep(0.0005 if calls[-2:] == [name, name] else 0.02)
        calls.append(name)

    runs = {name: lambda name=name: run(name) for name in "ab"}
    timed = race(runs, 0.01, pause=False)
    assert all(seconds < 0.01 for seconds in timed.seconds.values())


# ---- reports -------------------------------------------------------------------------------------


def test_losses_stand_out_in_markdown():
    measured = result(1.0, {"PyTorch": 0.5, "NumPy": 20.0})
    text = markdown(Report({"CPU": "any"}, [measured]))
    assert "- CPU: any" in text
    assert "| 4x16 | 1000000 | 0.00 |  | **0.50** | PyTorch | **0.50** | 20.0 |" in text
    assert "1 of 1" in text


def test_tables_of_recurrent_networks():
    measured = layer_result(1.0, {"PyTorch": 2.0}, {"ONNX Runtime": 0.5})
    text = markdown(Report({"CPU": "any"}, [measured]))
    assert "### layer-normalized LSTM, float32, 1 thread, fused loop" in text
    assert "| shape | µs | GFLOP/s | of peak | lead | over | to plain | of | PyTorch |" in text
    assert "| 2.00 | PyTorch | **0.50** | ONNX Runtime | 2.00 |" in text
    assert "| layer-normalized LSTM, to a plain one | float32 | 1 | **0.50** |" in text
    assert "Shapes are T, N, I, H" in text
    assert "of copy" not in text


def test_a_run_is_saved_and_read(tmp_path):
    report = Report({"CPU": "any"}, [result(1.0, {"PyTorch": 2.0}, copies={"NumPy": 1.0})])
    report.results.append(layer_result(1.0, {"PyTorch": 2.0}, {"PyTorch": 0.5}))
    report.save(tmp_path / "run.json")
    assert Report.read(tmp_path / "run.json") == report
    assert json.loads((tmp_path / "run.json").read_text())["results"][0]["ratios"] == {
        "normlib": 1.0,
        "PyTorch": 2.0,
    }


def test_absent_packages_are_named(monkeypatch):
    monkeypatch.setitem(table.PEERS, "JAX", table.Entry("jax", "Jax", ("no_such_package",)))
    assert absent("JAX") == ["no_such_package"]
    assert "JAX (no_such_package)" in machine(["normlib"])["not installed"]


def test_a_tiny_run_from_the_command_line(tmp_path, capsys):
    files = {kind: tmp_path / f"run.{kind}" for kind in ("json", "markdown", "png")}
    arguments = ["--peers", "NumPy", "--threads", "1", "--shapes", "4x16", "--ops", "layer_norm"]
    arguments += ["--dtypes", "float32", "--quick", "--json", str(files["json"])]
    assert main([*arguments, "--markdown", str(files["markdown"])]) == 0
    shown = capsys.readouterr().out
    for text in ("CPU level", "not installed", "layer norm, float32, 1 thread", "4x16"):
        assert text in shown
    (entry,) = json.loads(files["json"].read_text())["results"]
    assert set(entry["seconds"]) == {"normlib", "NumPy"}
    assert entry["ratios"]["normlib"] == 1.0
    assert "| 4x16 |" in files["markdown"].read_text()
    assert main(["--load", str(files["json"]), "--plot", str(files["png"])]) == 0
    assert (tmp_path / "run-1-thread.png").stat().st_size > 1000


def test_a_tiny_run_of_recurrent_networks(tmp_path, capsys):
    arguments = ["rnn", "--peers", "NumPy", "--threads", "1", "--shapes", "3x2x4x5", "--quick"]
    arguments += ["--ops", "gru_layer", "--plot", str(tmp_path / "run.png")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for text in ("layer-normalized GRU, float32, 1 thread, fused loop", "3x2x4x5", "GFLOP/s"):
        assert text in shown
    assert (tmp_path / "run-1-thread.png").stat().st_size > 1000


def test_an_operation_of_another_group_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--ops", "lstm"])
    assert (
        "lstm is in the group rnn: python -m benchmarks rnn --ops lstm" in capsys.readouterr().err
    )


def test_choices_are_listed(capsys, monkeypatch):
    monkeypatch.setitem(table.PEERS, "JAX", table.Entry("jax", "Jax", ("no_such_package",)))
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*OPS, *PEERS])
    assert "needs no_such_package" in shown


@pytest.mark.parametrize("arguments", [["--shapes", "5"], ["--threads", "0"], ["--ops", "other"]])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


# ---- thresholds ----------------------------------------------------------------------------------


def test_a_constant_is_read_from_the_source():
    assert thresholds.constant("NO_SUCH_CONSTANT", "layer_norm.pyx") == "not in layer_norm.pyx"
    assert thresholds.constant("_", "no_such_file.pyx") == "unknown: not a source tree"


def test_tables_of_thresholds(monkeypatch, capsys):
    monkeypatch.setattr(thresholds, "BUDGET", 0.0)
    monkeypatch.setattr(thresholds, "_elements", lambda shapes: print(len(shapes), "shapes"))
    monkeypatch.setattr(thresholds, "_speed_up", lambda call: 1.5)
    assert thresholds.main(["threads", "streaming", "groups"]) == 0
    shown = capsys.readouterr().out
    for name in ("MIN_ELEMENTS", "STREAM_FLOATS", "GROUP_FLOATS"):
        assert re.search(rf"{name} = \d", shown)
    assert "a second thread gains 1.1 times in layer norm from: 4096" in shown
    assert shown.count("10 shapes") == 2
    with pytest.raises(SystemExit, match="2"):
        thresholds.main(["other"])


# ---- plugin --------------------------------------------------------------------------------------


def test_the_plugin_is_timed_beside_the_built_in(monkeypatch, capsys):
    monkeypatch.setattr(plugin, "BUDGET", 0.0)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setitem(sys.modules, "page", None)  # taken away afterwards
    assert plugin.main(["--shape", "2x3x4x5"]) == 0
    shown = capsys.readouterr().out
    assert "LSTM, 2x3x4x5, float32" in shown
    for name in ("built-in", "numba", "NumPy"):
        assert len(re.findall(rf"^{name} +\d+\.\d\d +\d+\.\d\d$", shown, re.MULTILINE)) == 2
