"""Two 3x3 convolutions of stride 2 beside an average pool and a 1x1 convolution: how NAS-Bench-201 halves the resolution.

Dong and Yang 2020, section 2.1.
"""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, Add, BatchNorm, Conv, Pool


@dataclass(frozen=True)
class ResidualBlock(Op):
    out: int

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        (x,) = xs
        y = x
        for i, stride in enumerate((2, 1), start=1):
            y = g.add(Activation("relu"), y)
            y = g.add(Conv(self.out, 3, stride, 1), y, name=f"conv{i}")
            y = g.add(BatchNorm(), y, name=f"bn{i}")
        odd = x.spec.dims[1] % 2 or x.spec.dims[2] % 2
        pooled = g.add(Pool("avg", 3, 2, 1) if odd else Pool("avg", 2, 2), x)
        return g.add(Add(), g.add(Conv(self.out), pooled, name="shortcut"), y)
