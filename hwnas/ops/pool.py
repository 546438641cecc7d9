"""Maximum or average pool, padded to keep its size at stride 1."""

from dataclasses import dataclass
from typing import Literal

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import Pool as PoolPrim


@dataclass(frozen=True)
class Pool(Op):
    kind: Literal["max", "avg"]
    kernel: int = 3
    stride: int = 1

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        return g.add(PoolPrim(self.kind, self.kernel, self.stride, (self.kernel - 1) // 2), *xs)
