"""The command line: every command on a small run."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import ENVIRONMENT, HERE, foreign, refused
from fake_device import install, slowed
from runs import SPACE, flags

from hwnas.latency.session import providers
from hwnas.lower.onnx import arch_text
from hwnas.plugins import known
from hwnas.report.run import RunFolder, read_weights

COMMANDS = known("hwnas.cli.commands")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_page(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "Usage" in out
    assert "--json" in out
    doc = getattr(importlib.import_module(f"hwnas.cli.commands.{command}"), command).__doc__.split()
    assert " ".join(doc[:3]) in " ".join(out.split())


def test_the_program_names_its_commands():
    done = subprocess.run(
        [sys.executable, "-m", "hwnas.cli", "--help"], capture_output=True, text=True, env=ENVIRONMENT, cwd=HERE.parent
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_devices_as_json(call):
    code, out, err = call("devices", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["providers"] == providers()
    assert found["cores"] >= 1
    assert found["processor"]
    named = {d["name"]: d for d in found["devices"]}
    assert named["cpu"]["available"] is True
    assert named["cpu"]["threads"] == 1
    assert named["cuda"]["available"] is ("CUDAExecutionProvider" in providers())
    assert named["cpu-int8"]["precision"] == "int8"
    assert named["h200-cuda-graph"]["provider_options"]["enable_cuda_graph"] == "1"


def test_a_device_by_name_is_reached_and_asked(call):
    code, out, err = call("devices", "cpu", "cpu2-int8", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {name: answer["threads"] for name, answer in found.items()} == {"cpu": "1", "cpu2-int8": "2"}
    assert found["cpu2-int8"]["precision"] == "int8"
    code, out, _ = call("devices", "cpu")
    assert code == 0
    assert found["cpu"]["runtime"] in out
    refused(call("devices", "cpu", "nosuch"), "unknown device")


def test_a_device_that_cannot_be_reached_is_refused(call, tmp_path):
    (tmp_path / "pi").mkdir()
    (tmp_path / "pi/device.toml").write_text('[transport]\nkind = "ssh"\nhost = "127.0.0.1"\nport = 1\n')
    refused(call("devices", tmp_path / "pi"), "pi cannot be reached by ssh", "Connection refused")
    assert call("devices", "--json")[0] == 0  # without a name nobody is reached


def test_devices_as_a_table(call):
    code, out, _ = call("devices")
    assert code == 0
    assert all(word in out for word in ("cpu", "cpu2", "cuda", "CPUExecutionProvider"))


def test_search_prints_the_report(call, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    code, out, err = call(*flags(tmp_path / "run", undisturbed / "profile"), "--resume", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((undisturbed / "run/report.json").read_text())
    code, out, err = call(*flags(tmp_path / "run", undisturbed / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert "kept" in out
    assert "accuracy" in out
    assert str(tmp_path / "run/model.onnx") in out


def test_several_budgets_hold_at_once(call, undisturbed, tmp_path):
    arguments = flags(tmp_path / "run", undisturbed / "profile", evaluations=3, supernet_epochs=1, epochs=1)
    code, out, err = call(*arguments, "--budget", "2500params", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["config"]["budget"] == {"latency_ms": 0.06, "params": 2500.0}
    assert found["params"] <= 2500


def test_another_evaluator_with_training_choices_in_workers(call, undisturbed, tmp_path):
    arguments = flags(
        tmp_path / "run", undisturbed / "profile", evaluator="short_training(epochs=1)", evaluations=4, batch=4,
        epochs=1, training="learning_rate",
    )  # fmt: skip
    code, out, err = call(*arguments, "--training", "batch_size=16,32")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "run/report.json").read_text())
    assert found["config"]["training"] == {"learning_rate": [0.01, 0.03, 0.1, 0.3], "batch_size": [16, 32]}
    rate, size = found["choices"]["train.learning_rate"], found["choices"]["train.batch_size"]
    assert f"recipe    learning_rate {rate}, batch_size {size}" in out
    assert "supernet" not in found["seconds"]


def test_show_a_run(call, undisturbed):
    code, out, err = call("show", undisturbed / "run", "--json")
    assert (code, err) == (0, "")
    found, report = json.loads(out), json.loads((undisturbed / "run/report.json").read_text())
    assert found["report"] == report
    assert found["key"] == report["key"]
    assert found["arch"] == (undisturbed / "run/arch.txt").read_text()
    assert [found[k] for k in ("macs", "params", "peak_bytes")] == [report[k] for k in ("macs", "params", "peak_bytes")]
    code, out, err = call("show", undisturbed / "run")
    assert (code, err) == (0, "")
    assert report["key"] in out
    assert f"{report['test']['accuracy']:.2%}" in out


def test_show_an_arch_and_a_model_say_the_same(call, undisturbed):
    found = []
    for name in ("arch.txt", "model.onnx"):
        code, out, err = call("show", undisturbed / "run" / name, "--json")
        assert (code, err) == (0, "")
        found.append(json.loads(out))
        assert call("show", undisturbed / "run" / name)[0] == 0
    assert found[0] == found[1]
    assert found[0]["report"] is None


@pytest.mark.parametrize("batch", [None, 3])
def test_export(call, undisturbed, tmp_path, batch):
    target = tmp_path / "new" / "model.onnx"
    arguments = ["export", undisturbed / "run", "-o", target, "--json", *(["--batch", batch] if batch else [])]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    report = RunFolder(undisturbed / "run").read_report()
    assert json.loads(out) == {"model": str(target), "bytes": target.stat().st_size, "key": report.key}
    model = onnx.load(target)
    assert arch_text(target.read_bytes()) == (undisturbed / "run/arch.txt").read_text()
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value, bool(dim.dim_param)) == ((batch, False) if batch else (0, True))
    import onnxruntime as ort

    images = np.random.default_rng(0).standard_normal((batch or 5, 1, 8, 8)).astype(np.float32)
    found = ort.InferenceSession(target).run(None, {"x": images})[0]
    reference = ort.InferenceSession(undisturbed / "run/model.onnx").run(None, {"x": images})[0]
    assert np.abs(found - reference).max() <= 1e-6 * np.abs(reference).max()
    assert len(read_weights(undisturbed / "run/weights.safetensors")) > 0


def test_measure_for_real(call, tmp_path, undisturbed):
    """Any ONNX model, ours or not, on this machine and with no time to spare."""
    other = foreign(tmp_path / "other.onnx")
    code, out, err = call("measure", undisturbed / "run/model.onnx", other, "--seconds", "0.1", "--json", fake=False)
    assert code in (0, 1)
    assert err == ""
    found = json.loads(out)
    assert [m["model"] for m in found["measurements"]] == [str(undisturbed / "run/model.onnx"), str(other)]
    assert found["device"] == "cpu"
    assert found["fingerprint"]["provider"] == "CPUExecutionProvider"
    for m in found["measurements"]:
        assert 0 < m["latency_ms"] <= m["median_ms"] <= m["p90_ms"]
        assert m["blocks"] >= 3
        assert m["runs"] >= m["blocks"]
        assert m["retest"] >= 0
        assert m["verdict"] in ("stable", "warn", "refused")
        assert (m["verdict"] == "stable") == (m["doubts"] == [])
    code, out, _ = call("measure", other, "--seconds", "0.1", fake=False)
    assert code in (0, 1)
    assert all(word in out for word in ("quiet", "median", "IQR", "p90", "retest", "verdict"))


@pytest.mark.parametrize(("error", "code"), [(0.001, 0), (0.03, 0), (0.2, 1)])
def test_a_refused_number_exits_with_1(call, tmp_path, monkeypatch, error, code):
    from hwnas.latency.measure import Measured, summarize

    def measure(models, device, **arguments):
        assert arguments["turns"] == 2
        return Measured([summarize([1.0, 1.0, 1.0 + error], 1, True, 0.0)], summarize([0.2] * 3, 1, True, 0.0))

    monkeypatch.setattr("hwnas.latency.measure.measure", measure)
    found = call("measure", foreign(tmp_path / "m.onnx"), "--json", fake=False)
    assert found[0] == code
    assert json.loads(found[1])["measurements"][0]["verdict"] == ("stable", "warn", "refused")[(error > 0.01) + (error > 0.05)]


def test_profile_as_json_and_as_a_table(call, tmp_path):
    arguments = ["profile", "--space", SPACE, "--input", "1,8,8", "--networks", "6", "--out", tmp_path / "p"]
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert Path(found["profile"]).is_file()
    assert set(found["predictors"]) >= {"lookup_table", "gaussian_process", "kernel_trees", "macs", "params"}
    assert found["predictors"]["macs"]["mape"] < 1e-6  # the device is linear in MACs
    assert all(m["latency_ms"] > 0 for m in found["ops"])
    time = found["where_time_goes"]
    assert time["networks"] == 6
    assert time["end_to_end_ms"] == pytest.approx(time["isolated_ms"] - time["calls_ms"] + time["in_place_ms"])
    before = Path(found["profile"]).read_bytes()
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert "mbconv" in out
    assert "end to end" in out
    assert Path(found["profile"]).read_bytes() == before  # complete: nothing is measured again


def test_a_profile_of_two_sizes_that_stops_in_time(call, tmp_path):
    arguments = ["profile", "--space", SPACE, "--input", "1,8,8", "--input", "1,12,12", "--networks", "6", "--out", tmp_path]
    code, out, err = call(*arguments, "--minutes", "0.01", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["measured"] < found["total"]
    assert found["predictors"] == {}
    code, out, err = call(*arguments, "--minutes", "0.01")
    assert code == 0
    assert "the same command goes on" in out
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["settled"] == found["total"]
    assert found["failures"] == {}
    assert [e["networks"] for e in found["predictors"]["macs"]] == [6, 6]
    code, out, err = call(*arguments)
    assert code == 0
    assert "float32[1,8,8]" in out
    assert "float32[1,12,12]" in out


def test_fit_predict_and_transfer(call, undisturbed, tmp_path):
    """From a profile to a predictor, to predictions, and from two devices to a third; on a device that is linear in MACs."""
    space = ["--space", SPACE, "--input", "1,8,8"]
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        assert call("profile", *space, "--networks", "12", "--out", folder)[0] == 0
        code, out, err = call("fit", *space, "--profile", folder, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["chosen"] in found["errors"]
        assert found["errors"][found["chosen"]]["held_out"]["mape"] < 0.01
        assert found["errors"][found["chosen"]]["held_out"]["networks"] == 3
    report = (folders[0] / "report.md").read_text()
    assert "networks never seen" in report
    assert "end to end" in report
    code, out, err = call("fit", *space, "--profile", folders[0], "--predictor", "macs")
    assert (code, err) == (0, "")
    assert "macs" in out
    code, out, err = call(
        "predict", undisturbed / "run", undisturbed / "run/model.onnx", undisturbed / "run/arch.txt", "--predictor",
        folders[0] / "predictor.json", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    predictions = json.loads(out)["predictions"]
    assert len(predictions) == 3
    assert len({p["latency_ms"] for p in predictions}) == 1
    expected = json.loads((undisturbed / "run/report.json").read_text())["measured"]["latency_ms"]
    assert predictions[0]["latency_ms"] == pytest.approx(expected, rel=1e-3)
    known_devices = ["--known", folders[0], "--known", folders[1]]
    code, out, err = call("transfer", *space, *known_devices, "--samples", "5", "--out", tmp_path / "new", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert len(found["measured"]) == 5
    assert found["left_out"]["mape"] < 0.05
    before = (tmp_path / "new/profile.jsonl").read_bytes()
    code, out, err = call("transfer", *space, *known_devices, "--samples", "5", "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    assert (tmp_path / "new/profile.jsonl").read_bytes() == before  # nothing is measured twice
    code, out, err = call("predict", undisturbed / "run", "--predictor", tmp_path / "new/predictor.json")
    assert (code, err) == (0, "")
    assert "90 % interval" in out


def test_a_missed_budget_exits_with_1_and_says_by_how_much(call, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        install(patch.setattr)
        patch.setattr("hwnas.compile.run.measure", slowed(lambda arch, n: 2.0))
        code, out, err = call(*flags(tmp_path / "run", undisturbed / "profile"), fake=False)
    assert (code, err) == (1, "")
    assert "MISSED" in out
    report = RunFolder(tmp_path / "run").read_report()
    for attempt in report.finalists:
        assert f"{attempt.key} {attempt.measured_ms:.4f} ms, {attempt.exceeds_by:.1%} over" in out
