"""Static quantisation: near the float network, in the form that was asked for, and refusals."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import UserError
from hwnas.latency.device import Device
from hwnas.latency.measure import Failure, canary_model, measure
from hwnas.latency.quantize import is_quantized, quantize, quantize_calibrated
from hwnas.latency.session import Session
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.spaces import make_space

HERE = Device(name="here")


def network(space: str) -> tuple[bytes, tuple[int, ...]]:
    where = make_space(space)
    arch = where.decode(where.sample(Random(1)))
    return to_onnx(arch, init_weights(arch)).SerializeToString(), arch.input.dims


@pytest.mark.parametrize(
    "space",
    ["mobilenet(input=(3,32,32),stages=((16,2,2),),se=True)", "nasbench201(channels=4,cells=1)", "chain(input=(1,8,8))"],
)
def test_the_quantised_network_is_near_the_float_one(space):
    model, dims = network(space)
    x = np.random.default_rng(3).standard_normal((2, *dims)).astype(np.float32)
    found, expected = Session(quantize(model), HERE).predict(x), Session(model, HERE).predict(x)
    assert found.shape == expected.shape
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max()


def test_weights_are_signed_and_per_channel_and_activations_unsigned():
    graph = onnx.load_from_string(quantize(canary_model())).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = [a for a in constants.values() if a.dtype == np.int8 and a.ndim == 4]
    assert len(weights) == 3
    scales = [constants[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert sum(s.shape == (32,) for s in scales) >= 3  # one for each output channel
    zero_points = {constants[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert zero_points == {np.dtype(np.uint8)}
    assert not [n for n in graph.node if n.op_type == "BatchNormalization"]


def test_it_is_the_same_every_time_and_what_is_quantised_stays_as_it_is():
    once = quantize(canary_model())
    quantize.cache_clear()
    assert quantize(canary_model()) == once
    assert quantize(once) == once


def test_calibration_takes_the_ranges_of_the_images_and_keeps_what_a_model_says_of_itself():
    """Images a hundred times as large as made-up input: ranges taken from the latter would clip nearly all of them."""
    arch = make_space("nasbench201(channels=4,cells=1)").decode((3, 3, 3, 2, 1, 3))
    model = to_onnx(arch, init_weights(arch), {"hwnas.budget": "5 ms"}).SerializeToString()
    images = 100 * np.random.default_rng(3).standard_normal((24, *arch.input.dims)).astype(np.float32)
    calibrated = quantize_calibrated(model, images[:16])
    expected = Session(model, HERE).predict(images[16:])
    near, clipped = (np.abs(Session(m, HERE).predict(images[16:]) - expected).mean() for m in (calibrated, quantize(model)))
    assert near < 0.05 * np.abs(expected).max() < clipped
    loaded = onnx.load_from_string(calibrated)
    assert is_quantized(loaded)
    assert not is_quantized(onnx.load_from_string(model))
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    assert metadata == {entry.key: entry.value for entry in onnx.load_from_string(model).metadata_props}
    assert metadata["hwnas.budget"] == "5 ms"
    assert quantize(calibrated) == calibrated


def symbolic() -> bytes:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "n"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    return content


@pytest.mark.parametrize(
    "content", [b"", b"not a model", canary_model()[:1000], symbolic()], ids=["empty", "text", "cut", "symbolic"]
)
def test_what_cannot_be_quantised_is_refused(content):
    with pytest.raises(UserError) as caught:
        quantize(content)
    assert "\n" not in str(caught.value)


def test_an_int8_device_measures_the_quantised_model_and_says_so(monkeypatch):
    seen = []
    original = quantize.__wrapped__
    monkeypatch.setattr("hwnas.latency.measure.quantize", lambda model: seen.append(model) or original(model))
    device = Device(name="int8", precision="int8")
    found = measure([canary_model(), symbolic()], device, seconds=0.1, min_rounds=3)
    assert seen == [canary_model(), symbolic()]
    assert not isinstance(found.outcomes[0], Failure)
    assert isinstance(found.outcomes[1], Failure)
    assert device.extra_fingerprint == {"precision": "int8"}
