"""Batch norm and ReLU: what comes before the classifier of a network whose blocks end without an activation."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, BatchNorm


@dataclass(frozen=True)
class BnRelu(Op):
    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        return g.add(Activation("relu"), g.add(BatchNorm(), *xs, name="bn"))
