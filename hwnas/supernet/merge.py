"""merge: many candidates as one program, in which whatever computes the same value is one value.

Values are hash-consed prim by prim: the same prim, the same view of the supernet's weights, the same inputs. So candidates
share their common prefixes, and options that differ late in a block share its beginning. Batch-norm statistics belong to a
value: equal values see equal inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.op import Op, PlacedOp
from hwnas.ir.prims import Add, Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.supernet.supernet import bank_name


class Weight(NamedTuple):
    """A view of the supernet's weights: the bank's weight, and the shape of the part that is used."""

    bank: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """In its prim: `weight` or `bias`."""
        return self.bank.rpartition(".")[2]


class Value(NamedTuple):
    """What a prim makes of other values. Statistics of a batch norm are not among its weights."""

    prim: Prim
    inputs: tuple[int, ...]
    weights: tuple[Weight, ...]
    spec: TensorSpec


@dataclass(frozen=True)
class Program:
    """Value 0 is the images, `values[i]` is value i + 1. `outputs` are the candidates' logits, in their order.

    needed: of each candidate the values that it needs, in order, without the images.
    unmerged: how many prims the candidates have one by one.
    """

    input: TensorSpec
    values: tuple[Value, ...]
    outputs: tuple[int, ...]
    needed: tuple[tuple[int, ...], ...]
    unmerged: int

    def spec(self, value: int) -> TensorSpec:
        return self.values[value - 1].spec if value else self.input

    def part(self, candidates: Sequence[int]) -> Program:
        """Of these candidates alone, in this order."""
        place = {0: 0}
        for value in sorted(set().union(*(self.needed[c] for c in candidates))):
            place[value] = len(place)
        values = tuple(
            Value(prim, tuple([place[i] for i in inputs]), weights, spec)
            for prim, inputs, weights, spec in (self.values[value - 1] for value in place if value)
        )
        needed = tuple(tuple(place[value] for value in self.needed[c]) for c in candidates)
        return Program(self.input, values, tuple(place[self.outputs[c]] for c in candidates), needed, self.unmerged)

    def in_order(self, candidates: Iterable[int]) -> list[int]:
        """These candidates, neighbours sharing as much as possible of what runs first."""
        return sorted(candidates, key=self.needed.__getitem__)


def merge(archs: Sequence[Arch]) -> Program:
    """One program for simplified archs of one space, at least one."""
    merged = _Merged(archs[0].input)
    outputs, needed = zip(*(merged.append(arch) for arch in archs), strict=True)
    return Program(archs[0].input, tuple(merged.values), outputs, needed, merged.unmerged)


class _Line(NamedTuple):
    """A prim of an op in a node, and a number that stands for prim and weights: those are slow to hash."""

    sign: int
    prim: Prim
    inputs: tuple[int, ...]
    weights: tuple[Weight, ...]
    spec: TensorSpec


class _Merged:
    """Hash-consed prims. Whole nodes are remembered too, which is all that most nodes of most candidates need."""

    def __init__(self, input: TensorSpec) -> None:
        self.input = input
        self.values: list[Value] = []
        self.unmerged = 0
        self._prims: dict[tuple[int, tuple[int, ...]], int] = {}
        self._nodes: dict[tuple[str, int, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}  # -> value, its op's values
        self._ops: list[Op] = []  # what _nodes knows by address stays where it is

    def append(self, arch: Arch) -> tuple[int, tuple[int, ...]]:
        """The value of its output, and all that it needs, in order."""
        values = {INPUT: 0}
        needed: set[int] = set()
        for name, op, inputs in ((node.name, node.op, tuple([values[i] for i in node.inputs])) for node in arch.nodes):
            key = name, id(op), inputs
            known = self._nodes.get(key)
            if known is None:
                known = self._nodes[key] = self._append(name, PlacedOp(op, tuple(map(self.spec, inputs))), inputs)
                self._ops.append(op)
            values[name], own = known
            needed.update(own)
            self.unmerged += len(own)
        return values[arch.output], tuple(sorted(needed))

    def _append(self, node: str, placed: PlacedOp, inputs: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        local = list(inputs)
        for line in _lines(node, placed):
            local.append(self._write(line, tuple(local[i] for i in line.inputs)))
        return local[placed.graph.output], tuple(local[len(inputs) :])

    def spec(self, value: int) -> TensorSpec:
        return self.values[value - 1].spec if value else self.input

    def _write(self, line: _Line, inputs: tuple[int, ...]) -> int:
        if isinstance(line.prim, Add):
            inputs = tuple(sorted(inputs))
        key = line.sign, inputs
        if key not in self._prims:
            self.values.append(Value(line.prim, inputs, line.weights, line.spec))
            self._prims[key] = len(self.values)
        return self._prims[key]


_signs: dict[tuple[Prim, tuple[Weight, ...]], int] = {}
_numbers = count()


@lru_cache(maxsize=1 << 16)
def _lines(node: str, placed: PlacedOp) -> tuple[_Line, ...]:
    graph, bank, lines = placed.graph, bank_name(node, placed.op), []
    for number, step in enumerate(graph.steps, start=len(graph.inputs)):
        weights = tuple(Weight(f"{bank}.{step.name}.{w.name}", w.shape) for w in graph.step_weights(step) if not w.buffer)
        sign = _signs.setdefault((step.prim, weights), next(_numbers))
        lines.append(_Line(sign, step.prim, step.inputs, weights, graph.specs[number]))
    return tuple(lines)
