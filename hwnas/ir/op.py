"""Op: a named block of prims, an open set. PlacedOp: an op on inputs of known shape, the unit of profiles and costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import ClassVar

from hwnas.ir.graph import Graph, GraphBuilder, Value
from hwnas.ir.tensor import TensorSpec

_HOME = "hwnas.ops."


@dataclass(frozen=True)
class Op(ABC):
    """A block. A subclass is a frozen dataclass in a file of its own, whose name is the op's name; its fields are literals.

    `entangled`: where a slot offers several ops of this class, they share one bank of weights, smaller ones taking the
    leading channels and the centre of the kernel (Cai et al. 2020, Once-for-All). Otherwise each option owns its weights.
    """

    entangled: ClassVar[bool] = False

    @abstractmethod
    def build(self, g: GraphBuilder, *xs: Value) -> Value:
        """Writes the block's prims over the inputs and returns its output."""

    @classmethod
    def name(cls) -> str:
        return cls.__module__.removeprefix(_HOME)

    def arguments(self) -> dict[str, object]:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        return f"{self.name()}({', '.join(f'{k}={v!r}' for k, v in self.arguments().items())})"


@dataclass(frozen=True)
class PlacedOp:
    """An op and the specs of its inputs: the key of the latency table, of a profile and of the cost cache."""

    op: Op
    inputs: tuple[TensorSpec, ...]

    @cached_property
    def graph(self) -> Graph:
        return _graph(self)

    @cached_property
    def output(self) -> TensorSpec:
        return self.graph.specs[self.graph.output]

    def __str__(self) -> str:
        return f"{self.op} @ {' '.join(map(str, self.inputs))}"


_MOST_SEEN = 1 << 16
_seen: dict[tuple[int, ...], PlacedOp] = {}


def place(op: Op, inputs: tuple[TensorSpec, ...]) -> PlacedOp:
    """The op on these inputs, the same object again for the same objects.

    Known by place in memory: a search asks for few again and again, and ops and specs are slow to compare.
    """
    key = id(op), *map(id, inputs)
    found = _seen.get(key)
    if found is None:
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        found = _seen[key] = PlacedOp(op, inputs)  # which keeps the places taken
    return found


@lru_cache(maxsize=1 << 16)
def _graph(placed: PlacedOp) -> Graph:
    builder = GraphBuilder(placed.inputs)
    return builder.finish(placed.op.build(builder, *builder.inputs))
