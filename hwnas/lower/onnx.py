"""to_onnx: an arch and its weights as an ONNX model, written with onnx's own builders; no tracing.

The batch dimension is symbolic unless it is given. The initializers carry the IR's weight names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import UserError
from hwnas.ir import prims
from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.simplify import simplify
from hwnas.ir.text import print_arch
from hwnas.lower.weights import check_weights

OPSET = 20  # the newest in which no op used here changes again; ONNX Runtime 1.17 and later run it
IR_VERSION = 9
OUTPUT = "logits"
ARCH_KEY = "hwnas.arch"

_PLAIN = {
    "relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid", "tanh": "Tanh", "gelu": "Gelu", "elu": "Elu",
}  # fmt: skip


@dataclass
class _Writer:
    """Collects nodes and initializers. `prefix` names what is written now; `weights` are the model's."""

    weights: Mapping[str, NDArray[np.float32]]
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, NDArray[Any]] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, name: str) -> str:
        full = f"{self.prefix}.{name}"
        self.initializers[full] = np.ascontiguousarray(self.weights[full], np.float32)
        return full

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        name = f"{self.prefix}/constant{len(self.initializers)}"
        self.initializers[name] = np.asarray(value)
        return name

    @singledispatchmethod
    def write(self, prim: prims.Prim, name: str, xs: Sequence[str], channels: int) -> str:
        """Writes a prim. `name` prefixes its weights, `channels` are those of its first input."""
        raise NotImplementedError(f"{type(prim).__name__} has no ONNX lowering")

    @write.register
    def _(self, prim: prims.Conv, name: str, xs: Sequence[str], channels: int) -> str:
        inputs = [*xs, self.weight(f"{name}.weight"), *([self.weight(f"{name}.bias")] if prim.bias else [])]
        return self.node(
            "Conv", inputs, kernel_shape=[prim.kernel] * 2, strides=[prim.stride] * 2, pads=[prim.padding] * 4,
            dilations=[prim.dilation] * 2, group=prim.groups,
        )  # fmt: skip

    @write.register
    def _(self, prim: prims.BatchNorm, name: str, xs: Sequence[str], channels: int) -> str:
        if prim.affine:
            affine = [self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        else:
            affine = [self.constant(np.ones(channels, np.float32)), self.constant(np.zeros(channels, np.float32))]
        statistics = [self.weight(f"{name}.running_mean"), self.weight(f"{name}.running_var")]
        return self.node("BatchNormalization", [*xs, *affine, *statistics], epsilon=prim.eps)

    @write.register
    def _(self, prim: prims.Activation, name: str, xs: Sequence[str], channels: int) -> str:
        if prim.kind == "relu6":
            return self.node("Clip", [*xs, self.constant(np.float32(0)), self.constant(np.float32(6))])
        if prim.kind == "hardsigmoid":
            return self.node("HardSigmoid", xs, alpha=1 / 6, beta=0.5)
        if prim.kind == "leaky_relu":
            return self.node("LeakyRelu", xs, alpha=0.01)
        if prim.kind == "silu":
            return self.node("Mul", [*xs, self.node("Sigmoid", xs)])
        return self.node(_PLAIN[prim.kind], xs)

    @write.register
    def _(self, prim: prims.Pool, name: str, xs: Sequence[str], channels: int) -> str:
        window = {"kernel_shape": [prim.kernel] * 2, "strides": [prim.stride] * 2, "pads": [prim.padding] * 4}
        return self.node("MaxPool" if prim.kind == "max" else "AveragePool", xs, **window)

    @write.register
    def _(self, prim: prims.GlobalPool, name: str, xs: Sequence[str], channels: int) -> str:
        return self.node("GlobalAveragePool", xs)

    @write.register
    def _(self, prim: prims.Flatten, name: str, xs: Sequence[str], channels: int) -> str:
        return self.node("Flatten", xs)

    @write.register
    def _(self, prim: prims.Linear, name: str, xs: Sequence[str], channels: int) -> str:
        inputs = [*xs, self.weight(f"{name}.weight"), *([self.weight(f"{name}.bias")] if prim.bias else [])]
        return self.node("Gemm", inputs, transB=1)

    @write.register
    def _(self, prim: prims.Add, name: str, xs: Sequence[str], channels: int) -> str:
        total = xs[0]
        for x in xs[1:]:  # Sum would do, but ONNX Runtime fuses only Add
            total = self.node("Add", [total, x])
        return total

    @write.register
    def _(self, prim: prims.Scale, name: str, xs: Sequence[str], channels: int) -> str:
        return self.node("Mul", xs)

    @write.register
    def _(self, prim: prims.Concat, name: str, xs: Sequence[str], channels: int) -> str:
        return self.node("Concat", xs, axis=1)

    @write.register
    def _(self, prim: prims.Shift, name: str, xs: Sequence[str], channels: int) -> str:
        return self.node("Pad", [*xs, self.constant(np.array([0, 0, -1, -1, 0, 0, 1, 1], np.int64))])

    @write.register
    def _(self, prim: prims.Zero, name: str, xs: Sequence[str], channels: int) -> str:
        (x,) = xs
        if prim.stride != 1:
            x = self.node("MaxPool", [x], kernel_shape=[1, 1], strides=[prim.stride] * 2)
        return self.node("Mul", [x, self.constant(np.float32(0))])


def to_onnx(
    arch: Arch,
    weights: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str] | None = None,
    batch: int | None = None,
) -> onnx.ModelProto:
    """The simplified arch as a checked model: input `x` [batch, *dims], output `logits`; the arch's text is in its metadata.

    `batch`: a fixed batch size, or None for a symbolic one. Raises UserError if a weight is missing or has another shape.
    """
    simple = simplify(arch)
    check_weights(simple, weights)
    writer = _Writer(weights)
    names = {INPUT: INPUT}
    for node in simple.nodes:
        graph = simple.placed(node).graph
        writer.prefix = node.name
        values = [names[i] for i in node.inputs]
        for step in graph.steps:
            first = graph.specs[step.inputs[0]]
            values.append(writer.write(step.prim, step.name, [values[i] for i in step.inputs], first.channels))
        names[node.name] = values[graph.output]
    writer.prefix = OUTPUT
    last = names[simple.output]
    writer.nodes.append(helper.make_node("Identity", [last], [OUTPUT], name=OUTPUT))
    dim = "batch" if batch is None else batch
    model = helper.make_model(
        helper.make_graph(
            _without_identity(writer.nodes, last),
            "hwnas",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [dim, *simple.input.dims])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [dim, *simple.specs[simple.output].dims])],
            [numpy_helper.from_array(a, n) for n, a in writer.initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="hwnas",
    )
    helper.set_model_props(model, {ARCH_KEY: print_arch(simple), **(metadata or {})})
    onnx.checker.check_model(model, full_check=True)
    return model


def _without_identity(nodes: list[onnx.NodeProto], last: str) -> list[onnx.NodeProto]:
    """The last node under the output's name, instead of a copy of its result; kept where the output is the input."""
    for node in nodes[:-1]:
        if last in node.output:
            for later in nodes:
                later.input[:] = [OUTPUT if i == last else i for i in later.input]
            node.output[:] = [OUTPUT]
            return nodes[:-1]
    return nodes


def read_metadata(model: bytes) -> dict[str, str]:
    """The metadata of a model. UserError if the bytes are not one."""
    try:
        return {p.key: p.value for p in onnx.load_from_string(model).metadata_props}
    except Exception as error:  # protobuf's DecodeError is not exported under one name by all versions
        raise UserError("this is not an ONNX model", got=str(error)) from None


def arch_text(model: bytes) -> str:
    """The text of the arch that `to_onnx` wrote into a model. UserError if it is not such a model."""
    properties = read_metadata(model)
    if ARCH_KEY not in properties:
        raise UserError("the model carries no arch", remedy="only models that hwnas exported do; measure takes any model")
    return str(properties[ARCH_KEY])
