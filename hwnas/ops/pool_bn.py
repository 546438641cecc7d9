"""3x3 pool and batch norm: the pools of DARTS (Liu et al. 2019)."""

from dataclasses import dataclass
from typing import Literal

from hwnas.ir.graph import GraphBuilder, Value
from hwnas.ir.op import Op
from hwnas.ir.prims import BatchNorm, Pool


@dataclass(frozen=True)
class PoolBn(Op):
    kind: Literal["max", "avg"]
    stride: int = 1
    affine: bool = True

    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        x = g.add(Pool(self.kind, 3, self.stride, 1), *xs)
        return g.add(BatchNorm(self.affine), x, name="bn")
