"""NAS-Bench-201 (Dong and Yang 2020): one cell of 4 nodes and 6 edges, 5 ops an edge, repeated through 3 stages.

A genotype is the row of op numbers in which the benchmark's tables are indexed: edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.ir.arch import Node
from hwnas.ir.op import Op
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.bn_relu import BnRelu
from hwnas.ops.classifier import Classifier
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.identity import Identity
from hwnas.ops.pool import Pool
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.residual_block import ResidualBlock
from hwnas.ops.sum import Sum
from hwnas.ops.zero import Zero
from hwnas.space import Choice, Slot, Space

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def edge_ops(out: int, affine: bool) -> tuple[Op, ...]:
    """The options of an edge of `out` channels, in the order of OPS."""
    return Zero(), Identity(), ReluConvBn(out, 1, affine=affine), ReluConvBn(out, 3, affine=affine), Pool("avg")


def space(
    input: tuple[int, int, int] = (3, 32, 32), classes: int = 10, channels: int = 16, cells: int = 5, affine: bool = True
) -> Space:
    """`channels` of the first stage (doubled twice) and `cells` a stage; 16 and 5 in the benchmark.

    `affine`: batch norms of the edges have weights, as in the benchmark; without, mixed supernets train
    faster on processors.
    """
    if type(channels) is not int or type(cells) is not int or min(channels, cells) < 1:
        raise UserError("nasbench201 needs whole numbers of channels and cells, at least 1", got=(channels, cells))
    choices = tuple(Choice(f"e{a}_{b}", OPS) for a, b in EDGES)
    nodes: list[Node | Slot] = [Node("stem", ConvBn(channels, act="none"), ("x",))]
    last = "stem"
    for stage in range(3):
        out = channels * 2**stage
        if stage:
            nodes.append(Node(f"reduce{stage}", ResidualBlock(out), (last,)))
            last = nodes[-1].name
        options = edge_ops(out, affine)
        for cell in range(cells):
            prefix = f"stage{stage}.cell{cell}"
            states = [last]
            for target in (1, 2, 3):
                edges = [
                    Slot(f"{prefix}.e{a}_{b}", (f"e{a}_{b}",), options, (states[a],)) for a, b in sorted(EDGES) if b == target
                ]
                nodes += [*edges, Node(f"{prefix}.n{target}", Sum(), tuple(e.name for e in edges))]
                states.append(nodes[-1].name)
            last = states[-1]
    nodes += [Node("norm", BnRelu(), (last,)), Node("head", Classifier(classes), ("norm",))]
    return Space("nasbench201", TensorSpec(tuple(input)), choices, tuple(nodes), "head")
