"""Separable convolution, applied twice: ReLU, depthwise, pointwise, batch norm (DARTS, Liu et al. 2019)."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, BatchNorm, Conv


@dataclass(frozen=True)
class SepConv(Op):
    out: int
    kernel: int
    stride: int = 1
    affine: bool = True

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        (x,) = xs
        c, k = x.spec.channels, self.kernel
        for i, (out, stride) in enumerate(((c, self.stride), (self.out, 1)), start=1):
            x = g.add(Activation("relu"), x)
            x = g.add(Conv(c, k, stride, k // 2, groups=c), x, name=f"dw{i}")
            x = g.add(Conv(out), x, name=f"pw{i}")
            x = g.add(BatchNorm(self.affine), x, name=f"bn{i}")
        return x
