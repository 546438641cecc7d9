"""kernels against the graphs that ONNX Runtime itself optimises."""

from __future__ import annotations

import random
from collections import Counter

import onnx
import onnxruntime as ort
import pytest

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.tensor import TensorSpec
from hwnas.lower.features import features, fused_nodes, saved_kernels
from hwnas.lower.fusion import FUSED_ACTIVATION, FUSED_ADD, kernels, op_kernels
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.ops.mbconv import MbConv
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sum import Sum
from hwnas.space import Space
from hwnas.spaces import make_space


def optimised(arch: Arch, path: str) -> Counter[str]:
    """What ONNX Runtime makes of an arch: op types, sums and activations fused into convolutions among them."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = path, 4
    ort.InferenceSession(to_onnx(arch, init_weights(arch)).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Counter[str] = Counter()
    for node in onnx.load(path).graph.node:
        found[node.op_type.removeprefix("Fused")] += 1
        if node.op_type in ("Conv", "FusedConv"):
            found[FUSED_ADD] += len(node.input) > 3
            found[FUSED_ACTIVATION] += any(a.name == "activation" for a in node.attribute)
    return found


# Spaces whose channels are whole blocks of the runtime's layout: elsewhere it fuses as well, but into other operators.
ALIGNED = {
    "nasbench201": make_space("nasbench201(input=(3,12,12),channels=16,cells=1)"),
    "mobilenet": make_space(
        "mobilenet(input=(3,16,16),classes=5,stages=((16,2,2),(32,2,2)),stem=16,first=16,head=0,expansions=(1,2),widths=(1.0,))"
    ),
}


@pytest.mark.parametrize("name", sorted(ALIGNED))
@pytest.mark.parametrize("seed", range(6))
def test_as_the_runtime_fuses(name, seed, tmp_path):
    space = ALIGNED[name]
    arch = space.decode(space.sample(random.Random(seed)))
    theirs, ours = optimised(arch, str(tmp_path / "o.onnx")), Counter()
    for kernel, count in kernels(arch).items():
        ours[kernel.kind] += count
    assert ours["conv"] + ours["batchnorm"] == theirs["Conv"]  # a batch norm of its own becomes a depthwise convolution
    assert ours["activation"] == theirs["Relu"]
    assert ours["add"] == theirs["Add"]
    assert ours[FUSED_ADD] == theirs[FUSED_ADD]
    assert ours[FUSED_ACTIVATION] == theirs[FUSED_ACTIVATION]


def test_an_inverted_bottleneck_is_three_kernels():
    x = TensorSpec((16, 8, 8))
    assert fused_nodes(PlacedOp(MbConv(16, 3, 4), (x,))) == 3
    found = {k.kind: n for k, n in op_kernels(PlacedOp(MbConv(16, 3, 4), (x,))).items() if not k.launches}
    assert found[FUSED_ADD] == 1  # the residual


def test_an_activation_of_one_value_is_computed_once():
    x = TensorSpec((16, 8, 8))
    conv = ReluConvBn(16, 3)
    arch = Arch(x, (Node("a", conv, (INPUT,)), Node("b", conv, (INPUT,)), Node("c", Sum(), ("a", "b"))), "c")
    found = {kernel.kind: count for kernel, count in kernels(arch).items()}
    assert found == {"activation": 1, "conv": 2, FUSED_ADD: 1}
    assert {kernel.kind: n for kernel, n in saved_kernels(arch).items()} == {"activation": 1, "add": 1, FUSED_ADD: -1}


@pytest.mark.parametrize(
    "space",
    [
        *ALIGNED.values(),
        make_space("mobilenet(input=(3,16,16),classes=3,stages=((16,2,2),),se=True,act='hardswish',width=0.5)"),
        make_space("darts(input=(3,12,12),classes=3,channels=4,cells=3)"),
        make_space("chain(input=(1,12,12),classes=3)"),
        make_space("chain(input=(6,),classes=3,kind='dense')"),
    ],
    ids=lambda space: space.name,
)
def test_what_is_saved_makes_up_the_difference(space: Space):
    """For every space: kernels of the arch and those saved are the kernels of the ops by themselves."""
    for seed in range(4):
        arch = space.decode(space.sample(random.Random(seed)))
        alone: Counter[object] = Counter()
        for placed, count in features(arch).ops.items():
            for kernel, times in op_kernels(placed).items():
                alone[kernel] += count * times
        together = Counter(kernels(arch))
        together.update(saved_kernels(arch))
        assert +together == +alone
        assert all(count > 0 for count in kernels(arch).values())
