"""The command line: every bad input in one line, before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import foreign, refused
from runs import SPACE, flags

from hwnas.latency.session import providers


def test_predictors_that_are_not_there(call, undisturbed, tmp_path):
    space = ["--space", SPACE, "--input", "1,8,8"]
    assert refused(call("fit", *space, "--profile", tmp_path), "no profile")
    assert refused(call("fit", *space, "--predictor", "nosuch"), "unknown latency predictor")
    assert refused(call("predict", undisturbed / "run", "--predictor", tmp_path / "none.json"), "hwnas fit")
    assert refused(call("predict", undisturbed / "run", "--predictor", undisturbed / "run/report.json"), "not a predictor")
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
def test_bad_data_is_refused(call, undisturbed, tmp_path, kind):
    data = DATA[kind](tmp_path / "data")
    refused(call(*flags(tmp_path / "run", undisturbed / "profile", data=data)), data.name)
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
        ({"strategy": "auto(front='x')"}, ["front names a metric", "'x'", "known here: macs"]),
        ({"evaluator": "nosuch"}, ["unknown evaluator", "nosuch", "zero_cost"]),
        ({"evaluator": "training", "training": "speed"}, ["speed", "learning_rate"]),
        ({"training": "all"}, ["an evaluator that trains", "supernet"]),
        ({"workers": 9}, ["9 workers", "a batch of 513"]),
        ({"warm_start": "nosuch"}, ["a warm start needs a run's history", "nosuch", "a finished run"]),
        ({"sampling": "nosuch"}, ["uniform or sandwich"]),
        ({"seed": "-1"}, ["seed"]),
        ({"limit": "4"}, ["limit"]),
    ],
)
def test_bad_arguments_of_search_are_refused(call, undisturbed, tmp_path, changes, parts):
    extra = ["--budget", changes.pop("extra")] if "extra" in changes else []
    result = call(*flags(tmp_path / "run", undisturbed / "profile", **changes), *extra)
    if extra:
        changes["extra"] = extra[1]
    assert refused(result, *parts)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_folder_is_refused(call, undisturbed):
    before = {p.name: p.read_bytes() for p in (undisturbed / "run").iterdir()}
    refused(call(*flags(undisturbed / "run", undisturbed / "profile")), "already exists", "--resume", "--out")
    assert {p.name: p.read_bytes() for p in (undisturbed / "run").iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("budget", "0.07ms"), ("evaluations", 11), ("seed", 3), ("strategy", "random")])
def test_resuming_another_configuration_is_refused(call, undisturbed, name, value):
    refused(call(*flags(undisturbed / "run", undisturbed / "profile", **{name: value}), "--resume"), f"another {name}")


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
def test_profiles_of_elsewhere_or_damaged_are_refused(call, undisturbed, tmp_path, kind, command):
    """A torn last row is dropped and measured again by `profile`, which repairs; `search` refuses it, unless it resumes."""
    damage, part = PROFILES[kind]
    path = tmp_path / "p/profile.jsonl"
    path.parent.mkdir()
    path.write_text(damage((undisturbed / "profile/profile.jsonl").read_text().splitlines(keepends=True)))
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


def test_a_truncated_profile_in_a_run_is_refused(call, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    path = tmp_path / "run/profile.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    refused(call(*flags(tmp_path / "run", undisturbed / "profile"), "--resume"), str(path), "truncated")


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


def test_an_unknown_op_is_told_the_known_ones(call, undisturbed, tmp_path):
    text = (undisturbed / "run/arch.txt").read_text()
    assert "mbconv(" in text
    (tmp_path / "arch.txt").write_text(text.replace("mbconv(", "mbconvv(", 1))
    refused(call("show", tmp_path / "arch.txt"), "unknown op", "mbconvv", "did you mean mbconv?", "conv_bn")


def test_folders_and_models_that_are_not_ours_are_refused(call, tmp_path, undisturbed):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        refused(call("show", path), str(path))
        refused(call("export", path, "-o", tmp_path / "m.onnx"), str(path))
    refused(call("show", foreign(tmp_path / "other.onnx")))
    (tmp_path / "text.onnx").write_text("hello")
    refused(call("show", tmp_path / "text.onnx"))
    shutil.copytree(undisturbed / "run", tmp_path / "run")
    (tmp_path / "run/report.json").unlink()
    refused(call("export", tmp_path / "run", "-o", tmp_path / "m.onnx"), "an unfinished run", "--resume")
    assert not (tmp_path / "m.onnx").exists()
    shutil.copytree(undisturbed / "run", tmp_path / "torn")
    for name in ("weights.safetensors", "arch.txt", "report.json"):
        whole = (tmp_path / "torn" / name).read_bytes()
        (tmp_path / "torn" / name).write_bytes(whole[: len(whole) // 2])
        refused(call("export", tmp_path / "torn", "-o", tmp_path / "m.onnx"))
        (tmp_path / "torn" / name).unlink()
        refused(call("export", tmp_path / "torn", "-o", tmp_path / "m.onnx"))
        (tmp_path / "torn" / name).write_bytes(whole)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("command", [["measure", "MODEL"], ["profile", "--space", SPACE, "--input", "1,8,8"]])
def test_devices_that_are_not_here_are_refused(call, undisturbed, tmp_path, command):
    command = [str(undisturbed / "run/model.onnx") if c == "MODEL" else c for c in command]
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
