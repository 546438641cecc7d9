"""Convolution, batch norm, activation (`none` for no activation): stems, heads and the layers of plain networks."""

from dataclasses import dataclass
from typing import Literal

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, ActivationKind, BatchNorm, Conv


@dataclass(frozen=True)
class ConvBn(Op):
    entangled = True

    out: int
    kernel: int = 3
    stride: int = 1
    act: ActivationKind | Literal["none"] = "relu"

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        x = g.add(Conv(self.out, self.kernel, self.stride, self.kernel // 2), *xs, name="conv")
        x = g.add(BatchNorm(), x, name="bn")
        return x if self.act == "none" else g.add(Activation(self.act), x)
