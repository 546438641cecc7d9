"""The two nodes that bring the inputs of a DARTS cell to its width, which one call runs: finding them, and their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.ir.arch import Node
from hwnas.ir.op import Op
from hwnas.kernels.preprocess import preprocess
from hwnas.ops.factorized_reduce import FactorizedReduce
from hwnas.ops.relu_conv_bn import ReluConvBn

Weight = Callable[[str, Op, str, tuple[int, ...]], Tensor]  # (node, op, name, shape) -> the weight


@dataclass(frozen=True)
class Preprocess:
    """`older` is from the cell before the last one, `newer` from the last; neither keeps running statistics here."""

    older: Node
    newer: Node

    def states(self, values: Mapping[str, Tensor], weight: Weight) -> tuple[Tensor, Tensor]:
        """Both results [n, c, h, w], from the values of the nodes that they read."""
        x0, x1 = values[self.older.inputs[0]], values[self.newer.inputs[0]]
        reduced = isinstance(self.older.op, FactorizedReduce)

        def matrix(node: Node, name: str, out: int, x: Tensor) -> Tensor:
            return weight(node.name, node.op, f"{name}.weight", (out, x.shape[1], 1, 1)).flatten(1)

        out = _width(self.newer.op)
        if reduced:
            older = torch.cat([matrix(self.older, name, out // 2, x0) for name in ("even", "odd")])
        else:
            older = matrix(self.older, "conv", out, x0)
        return preprocess(x0, x1, older, matrix(self.newer, "conv", out, x1), reduced)


def find_preprocess(older: object, newer: object) -> Preprocess | None:
    """These two nodes of a space, if one call can run them."""
    if not isinstance(older, Node) or not isinstance(newer, Node):
        return None
    width = _width(newer.op)
    plain = newer.op == ReluConvBn(width, affine=False)
    if plain and older.op in (ReluConvBn(width, affine=False), FactorizedReduce(width, affine=False)) and width % 2 == 0:
        return Preprocess(older, newer)
    return None


def _width(op: Op) -> int:
    return op.out if isinstance(op, ReluConvBn) else 0
