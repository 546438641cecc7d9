"""Its inputs one after another along the channels: the output of a cell."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Concat as ConcatPrim


@dataclass(frozen=True)
class Concat(Op):
    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        return g.add(ConcatPrim(), *xs)
