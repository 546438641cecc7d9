"""ReLU, convolution, batch norm: the convolution of NAS-Bench-201 and the preprocessing of a DARTS cell."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, BatchNorm, Conv


@dataclass(frozen=True)
class ReluConvBn(Op):
    out: int
    kernel: int = 1
    stride: int = 1
    affine: bool = True

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        x = g.add(Activation("relu"), *xs)
        x = g.add(Conv(self.out, self.kernel, self.stride, self.kernel // 2), x, name="conv")
        return g.add(BatchNorm(self.affine), x, name="bn")
