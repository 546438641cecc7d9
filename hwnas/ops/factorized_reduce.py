"""Stride 2 without losing pixels: two 1x1 convolutions, on the even and on the odd pixels, side by side (DARTS)."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, BatchNorm, Concat, Conv, Shift


@dataclass(frozen=True)
class FactorizedReduce(Op):
    out: int
    affine: bool = True

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        x = g.add(Activation("relu"), *xs)
        even = g.add(Conv(self.out // 2, stride=2), x, name="even")
        odd = g.add(Conv(self.out - self.out // 2, stride=2), g.add(Shift(), x), name="odd")
        return g.add(BatchNorm(self.affine), g.add(Concat(), even, odd), name="bn")
