"""to_onnx against an independent export of the torch module, and what the model says about itself."""

from __future__ import annotations

import io
import random
import warnings

import numpy as np
import onnx
import pytest
import torch

from hwnas.errors import UserError
from hwnas.ir.prims import ACTIVATIONS
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.onnx import ARCH_KEY, to_onnx
from hwnas.lower.torch import to_torch
from hwnas.ops import read_arch
from hwnas.spaces import make_space

HERE = Device(name="here")


def traced(module: torch.nn.Module, x: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its own end
        torch.onnx.export(module, (x,), buffer, dynamo=False, opset_version=17, input_names=["x"])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "mobilenet(input=(3, 32, 32), classes=10, width=0.25, se=True, act='hardswish')",
        "darts(input=(3, 16, 16), classes=10, channels=4, cells=3)",
        "nasbench201(input=(3, 15, 13), classes=10, channels=4, cells=1)",
    ],
)
def test_the_tracing_exporter_agrees(text, random_weights):
    space = make_space(text)
    arch = simplify(space.decode(space.sample(random.Random(1))))
    weights = random_weights(arch)
    x = np.random.default_rng(0).standard_normal((2, *arch.input.dims)).astype(np.float32)
    independent = Session(traced(to_torch(arch, weights).eval(), torch.from_numpy(x)), HERE).predict(x)
    ours = Session(to_onnx(arch, weights).SerializeToString(), HERE).predict(x)
    assert np.abs(ours - independent).max() <= 1e-4 * np.abs(independent).max()


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_on_all_their_pieces(kind):
    """Each against its formula in float64, on a grid that crosses every kink."""
    from math import erf

    x = np.linspace(-9, 9, 361)[None]
    formula = {
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "hardsigmoid": np.clip(x / 6 + 0.5, 0, 1),
        "hardswish": x * np.clip(x / 6 + 0.5, 0, 1),
        "sigmoid": 1 / (1 + np.exp(-x)),
        "tanh": np.tanh(x),
        "silu": x / (1 + np.exp(-x)),
        "gelu": x / 2 * (1 + np.vectorize(erf)(x / 2**0.5)),
        "elu": np.where(x > 0, x, np.expm1(x)),
        "leaky_relu": np.where(x > 0, x, 0.01 * x),
    }[kind]
    arch = read_arch(f"x = input(361)\na = dense(x, out=361, act={kind!r})\noutput(a)\n")
    weights = {"a.linear.weight": np.eye(361, dtype=np.float32), "a.linear.bias": np.zeros(361, np.float32)}
    with torch.no_grad():
        by_torch = to_torch(arch, weights).eval()(torch.from_numpy(x.astype(np.float32))).numpy()
    by_runtime = Session(to_onnx(arch, weights).SerializeToString(), HERE).predict(x.astype(np.float32))
    for found in (by_torch, by_runtime):
        assert np.abs(found - formula).max() <= 2e-6 * np.abs(formula).max()


def test_the_model_carries_its_arch_and_metadata(random_weights):
    arch = read_arch("x = input(3, 8, 8)\ni = identity(x)\na = conv_bn(i, out=4)\nb = classifier(a, classes=2)\noutput(b)\n")
    weights = random_weights(arch)
    model = onnx.load_model_from_string(to_onnx(arch, weights, {"hwnas.latency_ms": "1.5"}).SerializeToString())
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["hwnas.latency_ms"] == "1.5"
    assert read_arch(properties[ARCH_KEY]) == simplify(arch)
    (x,) = model.graph.input
    (y,) = model.graph.output
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    assert [d.dim_param or d.dim_value for d in y.type.tensor_type.shape.dim] == ["batch", 2]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, value in weights.items():
        assert np.array_equal(stored[name], value)
    assert "Identity" not in [n.op_type for n in model.graph.node]


def test_a_fixed_batch_is_fixed(random_weights):
    arch = read_arch("x = input(3, 8, 8)\na = classifier(x, classes=2)\noutput(a)\n")
    model = to_onnx(arch, random_weights(arch), batch=4)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 8, 8]
    session = Session(model.SerializeToString(), HERE)
    assert session.predict(np.zeros((4, 3, 8, 8), np.float32)).shape == (4, 2)


def test_networks_that_do_nothing():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    nothing = read_arch("x = input(3, 4, 4)\noutput(x)\n")
    assert np.array_equal(Session(to_onnx(nothing, {}).SerializeToString(), HERE).predict(x), x)
    for stride, shape in ((1, (2, 3, 4, 4)), (2, (2, 3, 2, 2))):
        zeros = read_arch(f"x = input(3, 4, 4)\nz = zero(x, stride={stride})\noutput(z)\n")
        found = Session(to_onnx(zeros, {}).SerializeToString(), HERE).predict(x)
        assert found.shape == shape
        assert not found.any()


def test_an_output_that_others_read_too(random_weights):
    """The last node in the order need not be the output, and the output's value may have another reader inside its op."""
    arch = read_arch(
        "x = input(2, 4, 4)\na = conv_bn(x, out=2)\nb = mbconv(a, out=2, expand=2)\nc = conv_bn(b, out=3)\noutput(b)\n"
    )
    weights = random_weights(arch)
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
    with torch.no_grad():
        expected = to_torch(arch, weights).eval()(torch.from_numpy(x)).numpy()
    found = Session(to_onnx(arch, weights).SerializeToString(), HERE).predict(x)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_random_networks(random_dag, random_weights):
    for seed in range(25):
        arch = random_dag(seed)
        weights = random_weights(arch, seed)
        x = np.random.default_rng(seed).standard_normal((2, *arch.input.dims)).astype(np.float32)
        with torch.no_grad():
            expected = to_torch(arch, weights).eval()(torch.from_numpy(x)).numpy()
        found = Session(to_onnx(arch, weights).SerializeToString(), HERE).predict(x)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_missing_and_misshapen_weights_are_named(random_weights):
    arch = read_arch("x = input(3, 8, 8)\na = conv_bn(x, out=4)\noutput(a)\n")
    weights = random_weights(arch)
    for name in weights:
        rest = {n: w for n, w in weights.items() if n != name}
        with pytest.raises(UserError, match=name):
            to_onnx(arch, rest)
        with pytest.raises(UserError, match=name):
            to_torch(arch, rest)
    with pytest.raises(UserError, match=r"a\.conv\.weight"):
        to_torch(arch, {**weights, "a.conv.weight": np.zeros((4, 3, 5, 5), np.float32)})


def test_weights_of_the_wrong_shape_are_refused_by_onnx(random_weights):
    arch = read_arch("x = input(3, 8, 8)\na = conv_bn(x, out=4)\noutput(a)\n")
    with pytest.raises(UserError):
        to_onnx(arch, {**random_weights(arch), "a.conv.weight": np.zeros((4, 3, 5, 5), np.float32)})
