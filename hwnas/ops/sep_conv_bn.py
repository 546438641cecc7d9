"""Depthwise convolution, pointwise convolution, batch norm, activation: the layer of MobileNet (Howard et al. 2017)."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, ActivationKind, BatchNorm, Conv


@dataclass(frozen=True)
class SepConvBn(Op):
    entangled = True

    out: int
    kernel: int = 3
    stride: int = 1
    act: ActivationKind = "relu"

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        c = xs[0].spec.channels
        x = g.add(Conv(c, self.kernel, self.stride, self.kernel // 2, groups=c), *xs, name="dw")
        x = g.add(Conv(self.out), x, name="pw")
        x = g.add(BatchNorm(), x, name="bn")
        return g.add(Activation(self.act), x)
