"""Every placed op that a space's archs can hold: what a profile of the space measures.

Exact where choices are tied: the widths of two layers of one stage are never mixed. Each value of the space is tracked as a
table from assignments of the choices that decide its spec to that spec, with choices dropped as soon as they decide nothing.
"""

from __future__ import annotations

from itertools import product

from hwnas.ir.arch import INPUT
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add
from hwnas.ir.tensor import TensorSpec
from hwnas.space import Slot, Space

_Assignment = frozenset[tuple[str, int]]
_Table = dict[_Assignment, TensorSpec]


def placed_ops(space: Space) -> list[PlacedOp]:
    """The distinct placed ops, in the order of the space. Identities are none; a sum stands for every number of its terms."""
    found: dict[PlacedOp, None] = {}
    for ops in placements(space).values():
        for placed in ops:
            graph = placed.graph
            if graph.is_identity():
                continue
            if graph.computes_only(Add):
                for terms in range(2, len(placed.inputs) + 1):
                    found.setdefault(PlacedOp(placed.op, placed.inputs[:terms]))
            else:
                found.setdefault(placed)
    return list(found)


def placements(space: Space) -> dict[str, list[PlacedOp]]:
    """For every node and slot, the distinct placed ops that it can be."""
    sizes = {c.name: len(c.options) for c in space.choices}
    tables: dict[str, _Table] = {INPUT: {frozenset(): space.input}}
    result: dict[str, list[PlacedOp]] = {}
    for node in space.nodes:
        rows: _Table = {}
        found: dict[PlacedOp, None] = {}
        for inputs in product(*(tables[i].items() for i in node.inputs)):
            given = _merge([assignment for assignment, _ in inputs])
            if given is None:
                continue
            specs = tuple(spec for _, spec in inputs)
            if not isinstance(node, Slot):
                placed = PlacedOp(node.op, specs)
                found.setdefault(placed)
                rows[frozenset(given.items())] = placed.output
                continue
            for option, values in zip(node.options, product(*(range(sizes[c]) for c in node.choices)), strict=True):
                full = _merge([given.items(), zip(node.choices, values, strict=True)])
                if full is not None:
                    placed = PlacedOp(option, specs)
                    found.setdefault(placed)
                    rows[frozenset(full.items())] = placed.output
        result[node.name] = list(found)
        tables[node.name] = _reduce(rows)
    return result


def _merge(parts: list) -> dict[str, int] | None:  # type: ignore[type-arg]
    """The union of assignments, or None where they disagree."""
    merged: dict[str, int] = {}
    for part in parts:
        for choice, value in part:
            if merged.setdefault(choice, value) != value:
                return None
    return merged


def _reduce(rows: _Table) -> _Table:
    """The table without the choices that do not decide the spec."""
    for choice in sorted({c for assignment in rows for c, _ in assignment}):
        rest: dict[_Assignment, set[TensorSpec]] = {}
        for assignment, spec in rows.items():
            rest.setdefault(frozenset(p for p in assignment if p[0] != choice), set()).add(spec)
        if all(len(specs) == 1 for specs in rest.values()):
            rows = {assignment: next(iter(specs)) for assignment, specs in rest.items()}
    return rows
