"""Session: what it refuses, each in one line, and that it runs what it is given."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from hwnas.errors import UserError
from hwnas.latency.device import Device, known_devices, load_device
from hwnas.latency.measure import canary_model
from hwnas.latency.processor import instruction_sets, processor
from hwnas.latency.session import Session, fingerprint, providers

HERE = Device(name="here")


def model(
    node: onnx.NodeProto, shape: list[object], kind: int = TensorProto.FLOAT, domain: str = "", out: list[object] | None = None
) -> bytes:
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, out or shape)]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return content


def relu(shape: list[object], kind: int = TensorProto.FLOAT) -> bytes:
    return model(helper.make_node("Relu", ["x"], ["y"]), shape, kind)


def refused(content: bytes, device: Device = HERE) -> str:
    with pytest.raises(UserError) as caught:
        Session(content, device)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"not a model",
        b"<html></html>",
        b"\xff" * 1000,
        "{}".encode("utf-16"),
        canary_model()[:10],
        canary_model()[:1000],
        canary_model()[:-1],
    ],
    ids=["empty", "zero", "text", "html", "ff", "utf16", "cut10", "cut1000", "cut-1"],
)
def test_what_is_not_an_onnx_model(content):
    assert "not a model" in refused(content)


def test_random_damage_is_refused_or_runs():
    good = bytearray(relu(["batch", 3]))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(good)
        for at in rng.integers(0, len(good), 2):
            damaged[at] = rng.integers(0, 256)
        message = ""
        try:
            Session(bytes(damaged), HERE)
        except UserError as error:
            message = str(error)
        assert "\n" not in message


def test_an_operator_that_the_provider_does_not_have():
    message = refused(model(helper.make_node("Nonsense", ["x"], ["y"], domain="com.example"), [1, 3], domain="com.example"))
    assert "operators" in message
    assert "Nonsense" in message


def test_an_operator_without_a_kernel_for_its_type():
    node = helper.make_node("Conv", ["x", "x"], ["y"])
    message = refused(model(node, [1, 1, 1, 1], TensorProto.INT32))
    assert "Conv" in message or "int32" in message


def test_an_operator_of_an_opset_from_the_future():
    content = onnx.load_model_from_string(relu([1, 3]))
    content.opset_import[0].version = 999
    assert refused(content.SerializeToString())


def test_a_missing_provider():
    message = refused(relu([1, 3]), Device(name="gpu", provider="NoSuchExecutionProvider"))
    assert "NoSuchExecutionProvider" in message
    assert "CPUExecutionProvider" in message


@pytest.mark.parametrize("shape", [["batch", "channels"], [1, "n"], ["batch", 3, None, 8]])
def test_a_symbolic_dimension_that_is_not_the_batch(shape):
    assert "symbolic" in refused(relu(shape))


def test_an_input_that_is_no_number():
    assert "numbers" in refused(model(helper.make_node("Identity", ["x"], ["y"]), [1, 3], TensorProto.STRING))


@pytest.mark.parametrize("shape", [[1, 3], ["batch", 3], [None, 3, 8, 8], [7]])
def test_what_can_be_measured_runs(shape):
    session = Session(relu(shape), HERE, batch=2)
    session.run()
    x = np.random.default_rng(0).standard_normal([d if isinstance(d, int) else 5 for d in shape]).astype(np.float32)
    assert np.array_equal(session.predict(x), np.maximum(x, 0))


@pytest.mark.parametrize(
    "kind",
    [
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.BOOL,
    ],
)
def test_inputs_of_every_type_are_made(kind):
    Session(model(helper.make_node("Identity", ["x"], ["y"]), ["batch", 3], kind), HERE).run()


def test_threads_and_optimization_reach_the_session():
    for level in ("disabled", "basic", "extended", "all"):
        session = Session(canary_model(), Device(name="d", optimization=level, threads=2, spinning=False), batch=2)
        session.run()
        assert session._model._session.get_session_options().intra_op_num_threads == 2


def test_the_fingerprint_names_what_latency_depends_on():
    base = fingerprint(HERE)
    assert base["runtime"] == f"onnxruntime {ort.__version__}"
    assert base["processor"] == processor()
    assert base["instruction_sets"] == " ".join(instruction_sets())
    assert fingerprint(Device(name="another name", description="of the same machine")) == base
    prints = [base]
    for change in (
        {"threads": 2},
        {"spinning": False},
        {"optimization": "basic"},
        {"provider_options": {"a": "b"}},
    ):
        prints.append(fingerprint(Device(name="here", **change)))
    assert all(a != b for a, b in combinations(prints, 2))
    assert "CPUExecutionProvider" in providers()


def test_devices_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "latency_models" / "mine"
    folder.mkdir(parents=True)
    (folder / "device.toml").write_text('description = "d"\nthreads = 3\n')
    device = load_device("mine")
    assert (device.name, device.threads, device.provider) == ("mine", 3, "CPUExecutionProvider")
    assert load_device(str(folder)) == device
    assert known_devices()["mine"].samefile(folder / "device.toml")


@pytest.mark.parametrize(
    "content",
    [
        "threads = ",
        "threads = 0",
        "threads = 'two'",
        "size = 3",
        "optimization = 'most'",
        "[threads]\na = 1",
        "\x00",
        "name = 3",
    ],
)
def test_malformed_devices_are_refused(tmp_path, content):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "device.toml").write_text(content)
    with pytest.raises(UserError) as caught:
        load_device(str(folder))
    assert "\n" not in str(caught.value)


def test_a_device_file_that_is_not_text(tmp_path):
    (tmp_path / "device.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError):
        load_device(str(tmp_path))


def test_an_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"nosuch.*known: .*cpu"):
        load_device("nosuch")
