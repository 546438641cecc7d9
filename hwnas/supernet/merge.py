"""merge: many candidates as one program, in which whatever computes the same value is one step.

Values are hash-consed prim by prim: the same prim, the same view of the supernet's weights, the same inputs. So candidates
share their common prefixes, and options that differ late in a block share its beginning. Batch-norm statistics belong to a
step: equal steps see equal inputs. Then what runs in one pass becomes one step, as in lower/fusion: batch norm and activation
join what they follow, and an activation that only convolutions read is applied as they load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Activation, ActivationKind, Add, BatchNorm, Conv, Flatten, Linear, Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.supernet.supernet import bank_name


class Weight(NamedTuple):
    """A view of the supernet's weights: the bank's weight, and the shape of the part that is used."""

    bank: str
    shape: tuple[int, ...]


class Norm(NamedTuple):
    """A batch norm by statistics of its own; scale and shift if it is affine."""

    eps: float
    scale: Weight | None
    shift: Weight | None


@dataclass(frozen=True)
class Step:
    """Writes `after(norm(prim(before(x), ...)))`. A norm or an activation of its own is an Add of one term."""

    prim: Prim
    inputs: tuple[int, ...]
    spec: TensorSpec
    weight: Weight | None = None
    bias: Weight | None = None
    before: ActivationKind | None = None
    norm: Norm | None = None
    after: ActivationKind | None = None


@dataclass(frozen=True)
class Program:
    """Value 0 is the images, step i writes value i + 1. `outputs` are the candidates' logits, in their order.

    prims: how many there are; unmerged: how many the candidates have one by one.
    """

    input: TensorSpec
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    prims: int
    unmerged: int


def merge(archs: Sequence[Arch]) -> Program:
    """One program for simplified archs of one space, at least one."""
    merged = _Merged(archs[0].input)
    outputs = [merged.append(arch) for arch in archs]
    steps, place = _fuse(merged.values, outputs)
    return Program(
        archs[0].input, tuple(steps), tuple(place[o] for o in outputs), len(merged.values) - 1, merged.unmerged
    )  # fmt: skip


class _Value(NamedTuple):
    prim: Prim | None  # None for the images
    inputs: tuple[int, ...]
    weights: tuple[Weight, ...]
    spec: TensorSpec


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
        self.values = [_Value(None, (), (), input)]
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
        return local[placed.graph.output], len(set(local) - set(inputs))

    def _write(self, line: _Line, inputs: tuple[int, ...]) -> int:
        if isinstance(line.prim, Flatten) and self.values[inputs[0]].spec.dims[1:] in ((), (1, 1)):
            return inputs[0]  # a linear layer takes [c, 1, 1] as it is
        if isinstance(line.prim, Add):
            inputs = tuple(sorted(inputs))
        key = line.sign, inputs
        if key not in self._prims:
            self._prims[key] = len(self.values)
            self.values.append(_Value(line.prim, inputs, line.weights, line.spec))
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


def _fuse(values: Sequence[_Value], outputs: Sequence[int]) -> tuple[list[Step], dict[int, int]]:
    """Steps, and of each prim's value which step's value it is."""
    readers: list[list[Prim | None]] = [[] for _ in values]  # None: the caller
    for prim, inputs, _, _ in values:
        for i in inputs:
            readers[i].append(prim)
    for output in set(outputs):
        readers[output].append(None)

    steps: list[Step] = []
    place = {0: 0}
    before: dict[int, tuple[int, ActivationKind]] = {}  # an activation that its readers apply: of which prim's value
    for index, (prim, inputs, weights, spec) in enumerate(values):
        if prim is None:
            continue
        source = inputs[0]
        joins = len(readers[source]) == 1 and source not in before and source > 0
        last = steps[place[source] - 1] if joins else None
        if isinstance(prim, BatchNorm):
            norm = Norm(prim.eps, *(weights or (None, None)))
            if last and not last.norm and not last.after:
                steps[place[source] - 1] = replace(last, norm=norm)
                place[index] = place[source]
                continue
            step = Step(Add(), (place[source],), spec, norm=norm)
        elif isinstance(prim, Activation):
            if last and not last.after:
                steps[place[source] - 1] = replace(last, after=prim.kind)
                place[index] = place[source]
                continue
            if source not in before and all(isinstance(reader, Conv) for reader in readers[index]):
                before[index] = place[source], prim.kind
                continue
            step = Step(Add(), (place[source],), spec, after=prim.kind)
        elif isinstance(prim, Conv | Linear):
            value, kind = before[source] if source in before else (place[source], None)
            step = Step(prim, (value,), spec, weights[0], weights[1] if prim.bias else None, kind)
        else:
            step = Step(prim, tuple(place[i] for i in inputs), spec)
        steps.append(step)
        place[index] = len(steps)
    return steps, place
