"""Fully connected layer and activation (`none` for no activation); an image is flattened first."""

from dataclasses import dataclass
from typing import Literal

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation, ActivationKind, Flatten, Linear


@dataclass(frozen=True)
class Dense(Op):
    entangled = True

    out: int
    act: ActivationKind | Literal["none"] = "relu"

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        (x,) = xs
        if len(x.spec.dims) > 1:
            x = g.add(Flatten(), x)
        x = g.add(Linear(self.out), x, name="linear")
        return x if self.act == "none" else g.add(Activation(self.act), x)
