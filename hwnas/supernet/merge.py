"""merge: many candidates as one program, in which whatever computes the same value is one value.

Values are hash-consed prim by prim: the same prim, the same view of the supernet's weights, the same inputs. So candidates
share their common prefixes, and options that differ late in a block share its beginning. Batch-norm statistics belong to a
value: equal values see equal inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
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

    @cached_property
    def needed(self) -> list[tuple[int, ...]]:
        """Of each candidate the values that it needs, in order, without the images."""
        return [tuple(sorted(_ancestors(self.values, [output]))) for output in self.outputs]

    def in_order(self, candidates: Iterable[int]) -> list[int]:
        """These candidates, neighbours sharing as much as possible of what runs first."""
        return sorted(candidates, key=self.needed.__getitem__)


def _ancestors(values: Sequence[Value], wanted: Iterable[int]) -> set[int]:
    found, stack = set[int](), list(wanted)
    while stack:
        value = stack.pop()
        if value and value not in found:
            found.add(value)
            stack.extend(values[value - 1].inputs)
    return found


def merge(archs: Sequence[Arch]) -> Program:
    """One program for simplified archs of one space, at least one."""
    merged = _Merged()
    outputs = tuple(merged.append(arch) for arch in archs)
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

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.unmerged = 0
        self._prims: dict[tuple[int, tuple[int, ...]], int] = {}
        self._nodes: dict[tuple[str, object, tuple[int, ...]], tuple[int, int]] = {}  # -> value, number of prims

    def append(self, arch: Arch) -> int:
        values = {INPUT: 0}
        for node in arch.nodes:
            inputs = tuple(values[i] for i in node.inputs)
            key = (node.name, node.op, inputs)
            if key not in self._nodes:
                self._nodes[key] = self._append(node, arch.placed(node), inputs)
            values[node.name], count = self._nodes[key]
            self.unmerged += count
        return values[arch.output]

    def _append(self, node: Node, placed: PlacedOp, inputs: tuple[int, ...]) -> tuple[int, int]:
        local = list(inputs)
        lines = _lines(node.name, placed)
        for line in lines:
            local.append(self._write(line, tuple(local[i] for i in line.inputs)))
        return local[placed.graph.output], len(lines)

    def _write(self, line: _Line, inputs: tuple[int, ...]) -> int:
        if isinstance(line.prim, Add):
            inputs = tuple(sorted(inputs))
        key = line.sign, inputs
        if key not in self._prims:
            self.values.append(Value(line.prim, inputs, line.weights, line.spec))
            self._prims[key] = len(self.values)
        return self._prims[key]


_signs: dict[tuple[Prim, tuple[Weight, ...]], int] = {}


@lru_cache(maxsize=1 << 16)
def _lines(node: str, placed: PlacedOp) -> tuple[_Line, ...]:
    graph, bank, lines = placed.graph, bank_name(node, placed.op), []
    for number, step in enumerate(graph.steps, start=len(graph.inputs)):
        weights = tuple(Weight(f"{bank}.{step.name}.{w.name}", w.shape) for w in graph.step_weights(step) if not w.buffer)
        sign = _signs.setdefault((step.prim, weights), len(_signs))
        lines.append(_Line(sign, step.prim, step.inputs, weights, graph.specs[number]))
    return tuple(lines)
