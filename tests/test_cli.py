"""The command line: every command on a small run, every bad input in one line, and interruptions."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_device import install
from onnx import TensorProto, helper

import hwnas.cli
from hwnas.latency.session import providers
from hwnas.lower.onnx import arch_text
from hwnas.plugins import known
from hwnas.report.run import RunFolder, read_weights
from runs import SPACE, answer, flags, run

COMMANDS = known("hwnas.cli.commands")
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "COLUMNS": "100"}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `hwnas` in this process: exit code, stdout, stderr."""

    def go(*arguments, fake=True):
        with monkeypatch.context() as patch:
            if fake:
                install(patch.setattr)
            patch.setattr(sys, "argv", ["hwnas", *map(str, arguments)])
            capsys.readouterr()
            code = 0
            try:
                hwnas.cli.main()
            except SystemExit as stop:
                code = 0 if stop.code is None else stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return go


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of `profile` and of a finished `run`, which no test may change."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        run(folder, "first", evaluations=1, supernet_epochs=1, epochs=1)  # makes the profile
        run(folder)
    return folder


def refused(result, *parts):
    """Exit code 2, nothing on stdout, one line on stderr that holds these parts."""
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    return True


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
    assert named["h200-cuda-graph"]["provider_options"] == {"enable_cuda_graph": "1"}


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


def test_search_prints_the_report(call, finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    code, out, err = call(*flags(tmp_path / "run", finished / "profile"), "--resume", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((finished / "run/report.json").read_text())
    code, out, err = call(*flags(tmp_path / "run", finished / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert "kept" in out
    assert "accuracy" in out
    assert str(tmp_path / "run/model.onnx") in out


def test_several_budgets_hold_at_once(call, finished, tmp_path):
    arguments = flags(tmp_path / "run", finished / "profile", evaluations=3, supernet_epochs=1, epochs=1)
    code, out, err = call(*arguments, "--budget", "2500params", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["config"]["budget"] == {"latency_ms": 0.06, "params": 2500.0}
    assert found["params"] <= 2500


def test_show_a_run(call, finished):
    code, out, err = call("show", finished / "run", "--json")
    assert (code, err) == (0, "")
    found, report = json.loads(out), json.loads((finished / "run/report.json").read_text())
    assert found["report"] == report
    assert found["key"] == report["key"]
    assert found["arch"] == (finished / "run/arch.txt").read_text()
    assert [found[k] for k in ("macs", "params", "peak_bytes")] == [report[k] for k in ("macs", "params", "peak_bytes")]
    code, out, err = call("show", finished / "run")
    assert (code, err) == (0, "")
    assert report["key"] in out
    assert f"{report['test']['accuracy']:.2%}" in out


def test_show_an_arch_and_a_model_say_the_same(call, finished):
    found = []
    for name in ("arch.txt", "model.onnx"):
        code, out, err = call("show", finished / "run" / name, "--json")
        assert (code, err) == (0, "")
        found.append(json.loads(out))
        assert call("show", finished / "run" / name)[0] == 0
    assert found[0] == found[1]
    assert found[0]["report"] is None


@pytest.mark.parametrize("batch", [None, 3])
def test_export(call, finished, tmp_path, batch):
    target = tmp_path / "new" / "model.onnx"
    arguments = ["export", finished / "run", "-o", target, "--json", *(["--batch", batch] if batch else [])]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    report = RunFolder(finished / "run").read_report()
    assert json.loads(out) == {"model": str(target), "bytes": target.stat().st_size, "key": report.key}
    model = onnx.load(target)
    assert arch_text(target.read_bytes()) == (finished / "run/arch.txt").read_text()
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (dim.dim_value, bool(dim.dim_param)) == ((batch, False) if batch else (0, True))
    import onnxruntime as ort

    images = np.random.default_rng(0).standard_normal((batch or 5, 1, 8, 8)).astype(np.float32)
    found = ort.InferenceSession(target).run(None, {"x": images})[0]
    reference = ort.InferenceSession(finished / "run/model.onnx").run(None, {"x": images})[0]
    assert np.abs(found - reference).max() <= 1e-6 * np.abs(reference).max()
    assert len(read_weights(finished / "run/weights.safetensors")) > 0


def foreign(path: Path, op: str = "Relu", domain: str = "", dims=("n", 3, 4)) -> Path:
    """An ONNX file that hwnas has not written."""
    node = helper.make_node(op, ["in"], ["out"], domain=domain)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("in", "out")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())
    return path


def test_measure_for_real(call, tmp_path, finished):
    """Any ONNX model, ours or not, on this machine and with no time to spare."""
    other = foreign(tmp_path / "other.onnx")
    code, out, err = call("measure", finished / "run/model.onnx", other, "--seconds", "0.1", "--json", fake=False)
    assert code in (0, 1)
    assert err == ""
    found = json.loads(out)
    assert [m["model"] for m in found["measurements"]] == [str(finished / "run/model.onnx"), str(other)]
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


def test_fit_predict_and_transfer(call, finished, tmp_path):
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
        "predict", finished / "run", finished / "run/model.onnx", finished / "run/arch.txt", "--predictor",
        folders[0] / "predictor.json", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    predictions = json.loads(out)["predictions"]
    assert len(predictions) == 3
    assert len({p["latency_ms"] for p in predictions}) == 1
    expected = json.loads((finished / "run/report.json").read_text())["measured"]["latency_ms"]
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
    code, out, err = call("predict", finished / "run", "--predictor", tmp_path / "new/predictor.json")
    assert (code, err) == (0, "")
    assert "90 % interval" in out


def test_predictors_that_are_not_there(call, finished, tmp_path):
    space = ["--space", SPACE, "--input", "1,8,8"]
    assert refused(call("fit", *space, "--profile", tmp_path), "no profile")
    assert refused(call("fit", *space, "--predictor", "nosuch"), "unknown latency predictor")
    assert refused(call("predict", finished / "run", "--predictor", tmp_path / "none.json"), "hwnas fit")
    assert refused(call("predict", finished / "run", "--predictor", finished / "run/report.json"), "not a predictor")
    assert refused(call("transfer", *space, "--known", tmp_path, "--known", tmp_path), "hwnas fit")


def image_folder(path: Path, classes: dict[str, int]) -> Path:
    from PIL import Image

    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(path / name / f"{i}.png")
    return path


def archive(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def corrupt(path: Path) -> Path:
    whole = archive(path, x_train=np.zeros((9, 8, 8), np.uint8), y_train=np.arange(9)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


IMAGES = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype(np.uint8)
DATA = {
    "empty": empty_folder,
    "unlabelled": lambda p: archive(p.with_suffix(".npz"), x_train=IMAGES, x_test=IMAGES),
    "single-class": lambda p: image_folder(p, {"one": 12}),
    "corrupt": lambda p: corrupt(p.with_suffix(".npz")),
    "not-data": lambda p: p.with_suffix(".npz").write_text("hello") and p.with_suffix(".npz"),
    "missing": lambda p: p / "nowhere",
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_data_is_refused(call, finished, tmp_path, kind):
    data = DATA[kind](tmp_path / "data")
    refused(call(*flags(tmp_path / "run", finished / "profile", data=data)), data.name)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"space": "nosuch"}, ["unknown space", "nosuch", "mobilenet"]),
        ({"space": "mobilenat"}, ["did you mean mobilenet?"]),
        ({"space": "mobilenet(stages=3"}, ["space"]),
        ({"device": "nosuch"}, ["unknown device", "cpu"]),
        ({"strategy": "nosuch"}, ["unknown strategy", "evolution", "random"]),
        ({"predictor": "nosuch"}, ["unknown latency predictor", "lookup_table"]),
        ({"data": "nosuch"}, ["unknown data", "digits"]),
        ({"budget": "0.001ms"}, ["no architecture", "0.001 ms", "the smallest there is has"]),
        ({"budget": "5MMACs", "extra": "5params"}, ["no architecture", "5 params"]),
        ({"budget": "2"}, ["a budget needs a unit", "2ms"]),
        ({"budget": "2 parsecs"}, ["unknown unit", "2ms"]),
        ({"budget": "fast"}, ["a budget is", "fast"]),
        ({"sampling": "nosuch"}, ["uniform or sandwich"]),
        ({"seed": "-1"}, ["seed"]),
        ({"limit": "4"}, ["limit"]),
    ],
)
def test_bad_arguments_of_search_are_refused(call, finished, tmp_path, changes, parts):
    extra = ["--budget", changes.pop("extra")] if "extra" in changes else []
    result = call(*flags(tmp_path / "run", finished / "profile", **changes), *extra)
    if extra:
        changes["extra"] = extra[1]
    assert refused(result, *parts)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_folder_is_refused(call, finished):
    before = {p.name: p.read_bytes() for p in (finished / "run").iterdir()}
    refused(call(*flags(finished / "run", finished / "profile")), "already exists", "--resume", "--out")
    assert {p.name: p.read_bytes() for p in (finished / "run").iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("budget", "0.07ms"), ("evaluations", 11), ("seed", 3), ("strategy", "random")])
def test_resuming_another_configuration_is_refused(call, finished, name, value):
    refused(call(*flags(finished / "run", finished / "profile", **{name: value}), "--resume"), f"another {name}")


PROFILES = {
    "torn": (lambda lines: "".join(lines)[:-9], None),
    "of another device": (lambda lines: "".join([lines[0].replace('"threads": "1"', '"threads": "7"'), *lines[1:]]), "threads"),
    "of another runtime": (lambda lines: "".join([lines[0].replace("onnxruntime ", "onnxruntime 0."), *lines[1:]]), "runtime"),
    "of another format": (lambda lines: "".join(lines[1:]), "not a profile"),
    "damaged": (lambda lines: "".join([*lines[:3], "{]\n", *lines[3:]]), "line 4"),
    "empty": (lambda lines: "", "header"),
}


@pytest.mark.parametrize("kind", PROFILES)
@pytest.mark.parametrize("command", ["search", "profile"])
def test_profiles_of_elsewhere_or_damaged_are_refused(call, finished, tmp_path, kind, command):
    """A torn last row is dropped and measured again by `profile`, which repairs; `search` refuses it, unless it resumes."""
    damage, part = PROFILES[kind]
    path = tmp_path / "p/profile.jsonl"
    path.parent.mkdir()
    path.write_text(damage((finished / "profile/profile.jsonl").read_text().splitlines(keepends=True)))
    before = path.read_text()
    if command == "search":
        result = call(*flags(tmp_path / "run", path.parent, evaluations=1, supernet_epochs=1, epochs=1))
    else:
        result = call("profile", "--space", SPACE, "--input", "1,8,8", "--out", path.parent)
    if part is None and command == "search":
        assert refused(result, str(path), "truncated")
        assert path.read_text() == before
        result = call(*flags(tmp_path / "run", path.parent, evaluations=1, supernet_epochs=1, epochs=1), "--resume")
    if part is None:
        assert result[0] == 0, result[2]
        assert path.read_text().startswith(before[: before.rindex("\n") + 1])
        return
    assert refused(result, str(path), part)
    assert path.read_text() == before
    assert not (tmp_path / "run").exists()


def test_a_truncated_profile_in_a_run_is_refused(call, finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    path = tmp_path / "run/profile.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    refused(call(*flags(tmp_path / "run", finished / "profile"), "--resume"), str(path), "truncated")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"not a model"), lambda p: p.write_bytes(bytes(range(256)) * 9),
        lambda p: p.write_bytes(foreign(p).read_bytes()[:20]), lambda p: foreign(p, "NoSuchOperator"),
        lambda p: foreign(p, "FusedThing", "com.example"), lambda p: foreign(p, dims=("n", "m", 4)), lambda p: p.mkdir(),
        lambda p: None,
    ],
    ids=["empty", "text", "bytes", "cut", "operator", "domain", "symbolic", "folder", "missing"],
)  # fmt: skip
def test_models_that_cannot_be_measured_are_refused(call, tmp_path, make):
    make(tmp_path / "m.onnx")
    assert refused(call("measure", tmp_path / "m.onnx", "--seconds", "0.1", fake=False))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", []), (b"hello", []), (b"\xff\xfe\x00", []),
        (b"input(x, f32[1,8,8])\na = nosuch(x)\noutput(a)\n", []),
    ],
)  # fmt: skip
def test_archs_that_are_none_are_refused(call, tmp_path, content, parts):
    (tmp_path / "arch.txt").write_bytes(content)
    refused(call("show", tmp_path / "arch.txt"), *parts)


def test_an_unknown_op_is_told_the_known_ones(call, finished, tmp_path):
    text = (finished / "run/arch.txt").read_text()
    assert "mbconv(" in text
    (tmp_path / "arch.txt").write_text(text.replace("mbconv(", "mbconvv(", 1))
    refused(call("show", tmp_path / "arch.txt"), "unknown op", "mbconvv", "did you mean mbconv?", "conv_bn")


def test_folders_and_models_that_are_not_ours_are_refused(call, tmp_path, finished):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        refused(call("show", path), str(path))
        refused(call("export", path, "-o", tmp_path / "m.onnx"), str(path))
    refused(call("show", foreign(tmp_path / "other.onnx")))
    (tmp_path / "text.onnx").write_text("hello")
    refused(call("show", tmp_path / "text.onnx"))
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    refused(call("export", tmp_path / "run", "-o", tmp_path / "m.onnx"), "an unfinished run", "--resume")
    assert not (tmp_path / "m.onnx").exists()
    shutil.copytree(finished / "run", tmp_path / "torn")
    for name in ("weights.safetensors", "arch.txt", "report.json"):
        whole = (tmp_path / "torn" / name).read_bytes()
        (tmp_path / "torn" / name).write_bytes(whole[: len(whole) // 2])
        refused(call("export", tmp_path / "torn", "-o", tmp_path / "m.onnx"))
        (tmp_path / "torn" / name).unlink()
        refused(call("export", tmp_path / "torn", "-o", tmp_path / "m.onnx"))
        (tmp_path / "torn" / name).write_bytes(whole)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("command", [["measure", "MODEL"], ["profile", "--space", SPACE, "--input", "1,8,8"]])
def test_devices_that_are_not_here_are_refused(call, finished, tmp_path, command):
    command = [str(finished / "run/model.onnx") if c == "MODEL" else c for c in command]
    refused(call(*command, "--device", "nosuch", fake=False), "unknown device", "cpu")
    if "CUDAExecutionProvider" not in providers():
        refused(call(*command, "--device", "cuda", fake=False), "CUDAExecutionProvider", "available: ")


@pytest.mark.parametrize("size", ["x", "3", "1,2", "0,8,8", "-1,8,8", "1,8,8,8", ""])
def test_input_sizes_that_are_none_are_refused(call, tmp_path, size):
    code, _, err = call("profile", "--space", SPACE, "--networks", "4", f"--input={size}", "--out", tmp_path)
    if size:
        assert code == 2
        assert err.count("\n") == 1
    else:
        assert code == 0  # the space's own


@pytest.mark.parametrize("arguments", [["nosuch"], ["search"], ["search", "--evaluations", "0"], ["export"], ["measure"]])
def test_usage_errors_exit_with_2(call, arguments):
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert "Usage" in err


def stopped(folder: Path, profile: Path, moment: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / "fake_device.py", str(moment), name, *flags(folder, profile), *more]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=HERE.parent)


def test_interrupted_it_exits_with_130_and_resume_finishes(call, finished, tmp_path):
    shutil.copytree(finished / "profile", tmp_path / "profile")
    done = stopped(tmp_path / "run", tmp_path / "profile", 9, "SIGINT")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    assert not (tmp_path / "run/report.json").exists()
    code, _, err = call(*flags(tmp_path / "run", tmp_path / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert answer(tmp_path / "run") == answer(finished / "run")


def test_killed_at_a_random_moment_resume_gives_the_same_winner(call, finished, tmp_path):
    shutil.copytree(finished / "profile", tmp_path / "profile")
    moment = random.Random(2).randint(3, 20)
    done = stopped(tmp_path / "run", tmp_path / "profile", moment, "SIGKILL")
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run/report.json").exists()
    code, _, err = call(*flags(tmp_path / "run", tmp_path / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert answer(tmp_path / "run") == answer(finished / "run")


def test_a_missed_budget_exits_with_1_and_says_by_how_much(call, finished, tmp_path, monkeypatch):
    from fake_device import measure as fake_measure

    from hwnas.latency.measure import Measured, summarize

    def slow(models, device, **arguments):
        found = fake_measure(models, device, **arguments)
        return Measured([summarize([2 * m.latency_ms] * 3, 1, True, 0.0) for m in found.models], found.canary)

    with monkeypatch.context() as patch:
        install(patch.setattr)
        patch.setattr("hwnas.compile.measure", slow)
        code, out, err = call(*flags(tmp_path / "run", finished / "profile"), fake=False)
    assert (code, err) == (1, "")
    assert "MISSED" in out
    report = RunFolder(tmp_path / "run").read_report()
    for attempt in report.finalists:
        assert f"{attempt.key} {attempt.measured_ms:.4f} ms, {attempt.exceeds_by:.1%} over" in out
