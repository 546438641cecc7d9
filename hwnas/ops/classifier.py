"""Global average pool and a linear layer to the logits."""

from dataclasses import dataclass

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Flatten, GlobalPool, Linear


@dataclass(frozen=True)
class Classifier(Op):
    entangled = True

    classes: int

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        (x,) = xs
        if len(x.spec.dims) == 3:
            x = g.add(Flatten(), g.add(GlobalPool(), x))
        return g.add(Linear(self.classes), x, name="linear")
