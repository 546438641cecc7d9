"""Inverted bottleneck: expand, depthwise, optional squeeze-and-excite, project; residual where input and output agree.

Sandler et al. 2018 (MobileNetV2); squeeze-and-excite as in Tan et al. 2019 (MnasNet) and Howard et al. 2019.
"""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, ActivationKind, Add, BatchNorm, Conv, GlobalPool, Scale


@dataclass(frozen=True)
class MbConv(Op):
    """`expand`: width inside over width of the input; `se`: squeeze-and-excite to a quarter of the width inside."""

    entangled = True

    out: int
    kernel: int = 3
    expand: int = 6
    stride: int = 1
    se: bool = False
    act: ActivationKind = "relu"

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        (x,) = xs
        c = x.spec.channels
        inside = c * self.expand
        y = x
        if self.expand != 1:
            y = g.add(BatchNorm(), g.add(Conv(inside), y, name="expand"), name="expand_bn")
            y = g.add(Activation(self.act), y)
        y = g.add(Conv(inside, self.kernel, self.stride, self.kernel // 2, groups=inside), y, name="dw")
        y = g.add(Activation(self.act), g.add(BatchNorm(), y, name="dw_bn"))
        if self.se:
            squeezed = g.add(Conv(max(8, inside // 4), bias=True), g.add(GlobalPool(), y), name="squeeze")
            gate = g.add(Conv(inside, bias=True), g.add(Activation("relu"), squeezed), name="excite")
            y = g.add(Scale(), y, g.add(Activation("hardsigmoid"), gate))
        y = g.add(BatchNorm(), g.add(Conv(self.out), y, name="project"), name="project_bn")
        return g.add(Add(), x, y) if self.stride == 1 and self.out == c else y
