"""Arch: an immutable DAG of placed ops, checked at birth. The one datum that everything but a strategy sees."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType

from hwnas.errors import UserError
from hwnas.ir.op import Op, PlacedOp, place
from hwnas.ir.prims import Add, ShapeError, WeightSpec
from hwnas.ir.tensor import TensorSpec

INPUT = "x"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@lru_cache(maxsize=1 << 16)
def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Node:
    """An op, the name under which its weights and its output are known, and the names of what it takes."""

    name: str
    op: Op
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Arch:
    """Nodes in an order in which each comes after its inputs; the network's own input is called `x`.

    Raises UserError at construction if a name is unknown or taken, or if an op does not fit its input.
    """

    input: TensorSpec
    nodes: tuple[Node, ...]
    output: str

    def __post_init__(self) -> None:
        known = {INPUT}
        for node in self.nodes:
            if not _is_name(node.name) or node.name in known:
                raise UserError("a node needs a dotted name of its own", got=node.name)
            if not known.issuperset(node.inputs) or not node.inputs:
                missing = [i for i in node.inputs if i not in known]
                raise UserError(f"node {node.name} needs inputs that come before it", got=missing[0] if missing else "none")
            known.add(node.name)
        if self.output not in known:
            raise UserError("the output must be one of the nodes", got=self.output)
        _ = self._placed  # shape inference

    @cached_property
    def _placed(self) -> tuple[dict[str, TensorSpec], dict[str, PlacedOp]]:
        """Of the input and of every node's output the spec, and every node's op on its inputs."""
        specs, placed = {INPUT: self.input}, {}
        for node in self.nodes:
            op = placed[node.name] = place(node.op, tuple([specs[i] for i in node.inputs]))
            try:
                specs[node.name] = op.output
            except ShapeError as error:
                raise ShapeError(f"node {node.name} = {node.op}: {error}") from None
        return specs, placed

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The spec of the input and of every node's output."""
        return MappingProxyType(self._placed[0])

    def placed(self, node: Node) -> PlacedOp:
        """Of one of its own nodes."""
        return self._placed[1][node.name]

    def weights(self) -> Iterator[tuple[str, WeightSpec]]:
        """Every weight with its name, `<node>.<step>.<weight>`: the contract between supernet, torch and ONNX."""
        for node in self.nodes:
            for name, weight in self.placed(node).graph.weights():
                yield f"{node.name}.{name}", weight

    @cached_property
    def key(self) -> str:
        """A hash of the network up to its nodes' names and the order of its sums' terms. Ask it of the simplified form."""
        return hashlib.sha256(self._canonical().encode()).hexdigest()[:16]

    def _canonical(self) -> str:
        """The nodes that the output needs, numbered in an order that depends on the network alone.

        Colour refinement (Weisfeiler and Leman 1968) orders the terms of sums: a node's colour says what it computes and who
        reads it. Terms that it cannot tell apart are interchangeable, up to earlier decisions, which the numbers record.
        """
        by_name = {n.name: n for n in self.nodes}
        sums = {n.name for n in self.nodes if self.placed(n).graph.only is Add}
        colour = self._colours(sums)
        number = {INPUT: 0}
        lines = [str(self.input)]
        stack = [self.output]
        while stack:
            name = stack[-1]
            node = by_name.get(name)
            inputs = list(node.inputs) if node else []
            if name in sums:
                inputs.sort(key=lambda i: (colour[i], number.get(i, len(colour))))
            waiting = [i for i in inputs if i not in number]
            if waiting:
                stack.append(waiting[0])
                continue
            stack.pop()
            if node and name not in number:
                number[name] = len(number)
                numbers = [number[i] for i in inputs]
                lines.append(f"{node.op}({','.join(map(str, sorted(numbers) if name in sums else numbers))})")
        return "\n".join(lines)

    def _colours(self, sums: set[str]) -> dict[str, int]:
        """Colours as ranks: the same for the nodes of any two spellings of one network."""
        readers: dict[str, list[tuple[str, int]]] = {name: [] for name in self.specs}
        first: dict[str, object] = {INPUT: ("", str(self.input), False)}
        for node in self.nodes:
            first[node.name] = ("op", str(node.op), node.name == self.output)
            for position, source in enumerate(node.inputs):
                readers[source].append((node.name, 0 if node.name in sums else position))
        inputs = {n.name: n.inputs for n in self.nodes}
        colour = _ranks(first)
        while True:
            signs: dict[str, object] = {}
            for name in colour:
                sources = [colour[i] for i in inputs.get(name, ())]
                signs[name] = (
                    colour[name],
                    tuple(sorted(sources) if name in sums else sources),
                    tuple(sorted((colour[reader], position) for reader, position in readers[name])),
                )
            refined = _ranks(signs)
            if len(set(refined.values())) == len(set(colour.values())):
                return refined
            colour = refined


def _ranks(signs: Mapping[str, object]) -> dict[str, int]:
    order = {sign: rank for rank, sign in enumerate(sorted(set(signs.values())))}  # type: ignore[type-var]
    return {name: order[sign] for name, sign in signs.items()}
