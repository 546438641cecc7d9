"""Session: what it refuses, each in one line, and that it runs what it is given."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from itertools import combinations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from hwnas.errors import UserError
from hwnas.latency.device import Device
from hwnas.latency.measure import canary_model, measure
from hwnas.latency.processor import instruction_sets, processor
from hwnas.latency.session import Session, fingerprint, providers
from hwnas.latency.target import Target

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


def test_a_provider_that_leaves_nodes_to_the_processor_is_refused():
    """Azure's provider is part of every ONNX Runtime and runs no ordinary node: what it would do is fall back in silence."""
    if "AzureExecutionProvider" not in providers():
        pytest.skip("this ONNX Runtime has no provider but the processor's")
    message = refused(canary_model(), Device(name="azure", provider="AzureExecutionProvider"))
    assert "AzureExecutionProvider" in message
    assert "fallback" in message


def test_sessions_are_freed_without_the_garbage_collector():
    """The agent collects no garbage while it measures thousands of models."""
    gc.disable()
    try:
        session = Session(canary_model(), HERE)
        inner = weakref.ref(session._model)
        del session
        assert inner() is None
    finally:
        gc.enable()


def test_an_unknown_runtime_and_one_that_is_not_installed(monkeypatch):
    assert "unknown runtime" in refused(canary_model(), Device(name="here", runtime="nosuch"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "hwnas.latency.runtimes.openvino", raising=False)
    assert "not installed" in refused(canary_model(), Device(name="here", runtime="openvino"))


VINO = Device(name="vino", runtime="openvino", provider="CPU")


@pytest.mark.parametrize("shape", [[1, 3], ["batch", 3], [None, 3, 8, 8]])
def test_openvino_is_another_runtime_of_the_same_kind(shape):
    pytest.importorskip("openvino")
    session = Session(relu(shape), VINO, batch=2)
    session.run()
    x = np.random.default_rng(0).standard_normal([d if isinstance(d, int) else 5 for d in shape]).astype(np.float32)
    assert np.array_equal(session.predict(x), np.maximum(x, 0))


def test_openvino_agrees_with_onnx_runtime_and_refuses_the_same():
    pytest.importorskip("openvino")
    x = np.random.default_rng(0).standard_normal((1, 32, 16, 16)).astype(np.float32)
    expected = Session(canary_model(), HERE).predict(x)
    np.testing.assert_allclose(Session(canary_model(), VINO).predict(x), expected, atol=1e-5 * np.abs(expected).max())
    assert fingerprint(VINO)["runtime"].startswith("openvino")
    assert "OpenVINO can read" in refused(b"not a model", VINO)
    assert "symbolic" in refused(relu(["batch", "channels"]), VINO)
    assert "OpenVINO" in refused(model(helper.make_node("Nonsense", ["x"], ["y"]), [1, 3]), VINO)
    assert "not installed" in refused(relu([1, 3]), Device(name="vino", runtime="openvino"))
    assert "NO_SUCH_PROPERTY" in refused(relu([1, 3]), VINO.model_copy(update={"provider_options": {"NO_SUCH_PROPERTY": "1"}}))


def test_openvino_is_measured_by_the_same_protocol():
    pytest.importorskip("openvino")
    with Target(VINO) as target:
        assert measure([relu([1, 3])], VINO, seconds=0.1, min_rounds=3, target=target).models[0].latency_ms > 0
        group = target.connection()._process.pid  # the agent leads a process group of its own
    with pytest.raises(ProcessLookupError):  # nothing that it started is left
        os.killpg(group, 0)
