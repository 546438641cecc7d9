"""Graph: the prims that one op writes. Immutable once built; values are numbered, the inputs first, then one per step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from hwnas.errors import UserError
from hwnas.ir.prims import Prim, WeightSpec
from hwnas.ir.tensor import TensorSpec


@dataclass(frozen=True)
class Value:
    """A value inside a graph that is being built."""

    index: int
    spec: TensorSpec


@dataclass(frozen=True)
class Step:
    """One prim and the numbers of the values it takes. `name` prefixes its weights, and is empty if it owns none."""

    prim: Prim
    inputs: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Graph:
    """Step i writes value `len(inputs) + i`."""

    inputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    specs: tuple[TensorSpec, ...]  # of every value
    output: int

    def step_weights(self, step: Step) -> tuple[WeightSpec, ...]:
        return step.prim.weights([self.specs[i] for i in step.inputs])

    def weights(self) -> Iterator[tuple[str, WeightSpec]]:
        """Every weight with its name, `<step>.<weight>`: local to the op, whatever the network around it."""
        for step in self.steps:
            for weight in self.step_weights(step):
                yield f"{step.name}.{weight.name}", weight

    def is_identity(self) -> bool:
        return not self.steps and len(self.inputs) == 1

    @cached_property
    def only(self) -> type[Prim] | None:
        """The kind of its prim, if the graph is one step over all inputs in order."""
        everything = tuple(range(len(self.inputs)))
        if len(self.steps) == 1 and self.steps[0].inputs == everything and self.output == len(everything):
            return type(self.steps[0].prim)
        return None


class GraphBuilder:
    """What an op's `build` writes into."""

    def __init__(self, inputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = tuple(Value(i, spec) for i, spec in enumerate(inputs))
        self._specs = list(inputs)
        self._steps: list[Step] = []

    def add(self, prim: Prim, *xs: Value, name: str = "") -> Value:
        """Appends a prim; one that owns weights needs a name of its own, to which the weights' names belong for good."""
        specs = [x.spec for x in xs]
        if prim.weights(specs) and (not name or any(s.name == name for s in self._steps)):
            raise UserError(f"{type(prim).__name__} owns weights and needs a name that is free in its op", got=name)
        spec = prim.output(specs)
        self._steps.append(Step(prim, tuple(x.index for x in xs), name))
        self._specs.append(spec)
        return Value(len(self._specs) - 1, spec)

    def finish(self, output: Value) -> Graph:
        return Graph(tuple(x.spec for x in self.inputs), tuple(self._steps), tuple(self._specs), output.index)
