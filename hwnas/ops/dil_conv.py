"""Separable convolution of dilation 2: ReLU, depthwise, pointwise, batch norm (DARTS, Liu et al. 2019)."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, BatchNorm, Conv


@dataclass(frozen=True)
class DilConv(Op):
    out: int
    kernel: int
    stride: int = 1
    affine: bool = True

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        c = xs[0].spec.channels
        x = g.add(Activation("relu"), *xs)
        x = g.add(Conv(c, self.kernel, self.stride, self.kernel // 2 * 2, dilation=2, groups=c), x, name="dw")
        x = g.add(Conv(self.out), x, name="pw")
        return g.add(BatchNorm(self.affine), x, name="bn")
