"""merge: many candidates as one program, in which whatever computes the same value is one value.

Values are hash-consed prim by prim: the same prim, the same view of the supernet's weights, the same inputs. So candidates
share their common prefixes, and options that differ late in a block share its beginning. Batch-norm statistics belong to a
value: equal values see equal inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.graph import Graph
from hwnas.ir.op import Op, PlacedOp, place
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

    unmerged: how many prims the candidates have one by one.
    """

    input: TensorSpec
    values: tuple[Value, ...]
    outputs: tuple[int, ...]
    unmerged: int

    def spec(self, value: int) -> TensorSpec:
        return self.values[value - 1].spec if value else self.input


def merge(archs: Sequence[Arch]) -> Program:
    """One program for simplified archs of one space, at least one."""
    merged = _Merged(archs[0].input)
    outputs = tuple([merged.append(arch) for arch in archs])
    return Program(archs[0].input, tuple(merged.values), outputs, merged.unmerged)


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
        self._nodes: dict[tuple[str, int, tuple[int, ...]], tuple[int, int]] = {}  # -> value, and how many prims
        self._ops: list[Op] = []  # what _nodes knows by address stays where it is

    def append(self, arch: Arch) -> int:
        """The value of its output."""
        values = {INPUT: 0}
        nodes = self._nodes
        for node in arch.nodes:
            name, op, inputs = node.name, node.op, tuple([values[i] for i in node.inputs])
            key = name, id(op), inputs
            known = nodes.get(key)
            if known is None:
                known = nodes[key] = self._append(name, place(op, tuple(map(self.spec, inputs))), inputs)
                self._ops.append(op)
            values[name] = known[0]
            self.unmerged += known[1]
        return values[arch.output]

    def _append(self, node: str, placed: PlacedOp, inputs: tuple[int, ...]) -> tuple[int, int]:
        local = list(inputs)
        for line in _lines(node, placed):
            local.append(self._write(line, tuple([local[i] for i in line.inputs])))
        return local[placed.graph.output], len(local) - len(inputs)

    def spec(self, value: int) -> TensorSpec:
        return self.values[value - 1].spec if value else self.input

    def _write(self, line: _Line, inputs: tuple[int, ...]) -> int:
        if type(line.prim) is Add:
            inputs = tuple(sorted(inputs))
        key = line.sign, inputs
        known = self._prims.get(key)
        if known is None:
            self.values.append(Value(line.prim, inputs, line.weights, line.spec))
            known = self._prims[key] = len(self.values)
        return known


_signs: dict[tuple[Prim, tuple[Weight, ...]], int] = {}
_numbers = count()


_MOST_SEEN = 1 << 16
_seen: dict[
    tuple[str, int], tuple[Graph, tuple[_Line, ...]]
] = {}  # of a graph by its place in memory, itself so that it stays there


def _lines(node: str, placed: PlacedOp) -> tuple[_Line, ...]:
    graph = placed.graph
    key = node, id(graph)
    found = _seen.get(key)
    if found is None:
        if len(_seen) >= _MOST_SEEN:
            _seen.clear()
        found = _seen[key] = graph, _read(graph, bank_name(node, placed.op))
    return found[1]


def _read(graph: Graph, bank: str) -> tuple[_Line, ...]:
    lines = []
    for number, step in enumerate(graph.steps, start=len(graph.inputs)):
        weights = tuple(Weight(f"{bank}.{step.name}.{w.name}", w.shape) for w in graph.step_weights(step) if not w.buffer)
        sign = _signs.setdefault((step.prim, weights), next(_numbers))
        lines.append(_Line(sign, step.prim, step.inputs, weights, graph.specs[number]))
    return tuple(lines)
