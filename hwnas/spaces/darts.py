"""DARTS (Liu et al. 2019): a normal and a reduction cell, each a DAG of 4 nodes over the outputs of the two cells before.

A choice is an edge and takes one of 8 ops; each node keeps exactly two of its incoming edges. The same choice stands in every
cell of its kind.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.ir.arch import Node
from hwnas.ir.op import Op
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.classifier import Classifier
from hwnas.ops.concat import Concat
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.dil_conv import DilConv
from hwnas.ops.factorized_reduce import FactorizedReduce
from hwnas.ops.identity import Identity
from hwnas.ops.pool_bn import PoolBn
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sep_conv import SepConv
from hwnas.ops.sum import Sum
from hwnas.ops.zero import Zero
from hwnas.space import Choice, Keep, Slot, Space

OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
NODES = 4


def edge_ops(channels: int, stride: int, affine: bool) -> tuple[Op, ...]:
    """The options of an edge, in the order of OPS."""
    return (
        Zero(stride),
        PoolBn("max", stride, affine),
        PoolBn("avg", stride, affine),
        Identity() if stride == 1 else FactorizedReduce(channels, affine),
        SepConv(channels, 3, stride, affine),
        SepConv(channels, 5, stride, affine),
        DilConv(channels, 3, stride, affine),
        DilConv(channels, 5, stride, affine),
    )


def space(
    input: tuple[int, int, int] = (3, 32, 32), classes: int = 10, channels: int = 16, cells: int = 8, affine: bool = False
) -> Space:
    """`channels` inside the first cells, doubled at each of the two reduction cells, a third and two thirds of the way.

    `affine`: batch norm with scale and shift; the search network of the paper has none.
    """
    if cells < 1 or channels < 2 or channels % 2:
        raise UserError("the darts space needs at least one cell and an even number of channels", got=f"{cells}, {channels}")
    choices = []
    keeps = []
    for kind in ("normal", "reduce"):
        for target in range(NODES):
            names = tuple(f"{kind}.e{source}_{target}" for source in range(2 + target))
            choices += [Choice(name, OPS) for name in names]
            keeps.append(Keep(names, 2, OPS.index("none")))

    nodes: list[Node | Slot] = [Node("stem", ConvBn(3 * channels, act="none"), ("x",))]
    before, last, reduced_before = "stem", "stem", False
    for cell in range(cells):
        reduction = cells >= 3 and cell in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduction else 1
        prefix, kind = f"cell{cell}", "reduce" if reduction else "normal"
        older: Op = FactorizedReduce(channels, affine) if reduced_before else ReluConvBn(channels, affine=affine)
        nodes += [
            Node(f"{prefix}.s0", older, (before,)),
            Node(f"{prefix}.s1", ReluConvBn(channels, affine=affine), (last,)),
        ]
        states = [f"{prefix}.s0", f"{prefix}.s1"]
        for target in range(NODES):
            edges = []
            for source, state in enumerate(states):
                stride = 2 if reduction and source < 2 else 1
                name = f"e{source}_{target}"
                edges.append(Slot(f"{prefix}.{name}", (f"{kind}.{name}",), edge_ops(channels, stride, affine), (state,)))
            nodes += [*edges, Node(f"{prefix}.n{target}", Sum(), tuple(e.name for e in edges))]
            states.append(nodes[-1].name)
        nodes.append(Node(f"{prefix}.out", Concat(), tuple(states[-NODES:])))
        before, last, reduced_before = last, nodes[-1].name, reduction
    nodes.append(Node("head", Classifier(classes), (last,)))
    if cells < 3:  # no reduction cell: its choices would decide nothing
        choices, keeps = choices[: len(choices) // 2], keeps[:NODES]
    return Space("darts", TensorSpec(tuple(input)), tuple(choices), tuple(nodes), "head", tuple(keeps))
