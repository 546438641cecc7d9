"""Every placed op that a space's archs can hold: what a profile of the space measures.

Exact where choices are tied: the widths of two layers of one stage are never mixed. Each value of the space is tracked as a
relation between the choices that decide its spec and that spec. A choice leaves the relation when it decides nothing, or when
nothing that is still to come could notice it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import prod

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT
from hwnas.ir.op import PlacedOp, place
from hwnas.ir.prims import Add
from hwnas.ir.tensor import TensorSpec
from hwnas.space import Slot, Space

_Assignment = frozenset[tuple[str, int]]
_Relation = frozenset[tuple[_Assignment, TensorSpec]]

MOST_ASSIGNMENTS = 1 << 13


def placed_ops(space: Space) -> list[PlacedOp]:
    """The distinct placed ops, in the order of the space. Identities are none; a sum stands for every number of its terms."""
    found: dict[PlacedOp, None] = {}
    for ops in placements(space).values():
        for placed in ops:
            graph = placed.graph
            if graph.is_identity():
                continue
            if graph.only is Add:
                for terms in range(2, len(placed.inputs) + 1):
                    found.setdefault(place(placed.op, placed.inputs[:terms]))
            else:
                found.setdefault(placed)
    return list(found)


def placements(space: Space) -> dict[str, list[PlacedOp]]:
    """For every node and slot, the distinct placed ops that it can be."""
    sizes = {c.name: len(c.options) for c in space.choices}
    last_read = {i: position for position, node in enumerate(space.nodes) for i in node.inputs}
    last_slot = {c: position for position, node in enumerate(space.nodes) if isinstance(node, Slot) for c in node.choices}
    relations: dict[str, _Relation] = {INPUT: frozenset([(frozenset(), space.input)])}
    result: dict[str, list[PlacedOp]] = {}
    for position, node in enumerate(space.nodes):
        rows: set[tuple[_Assignment, TensorSpec]] = set()
        found: dict[PlacedOp, None] = {}
        # Sorted, so that the order of the ops does not depend on the order of sets.
        for inputs in product(*(sorted(relations[i], key=_order) for i in node.inputs)):
            given = _merge(pair for assignment, _ in inputs for pair in assignment)
            if given is None:
                continue
            specs = tuple(spec for _, spec in inputs)
            if not isinstance(node, Slot):
                placed = place(node.op, specs)
                found.setdefault(placed)
                rows.add((frozenset(given.items()), placed.output))
                continue
            for option, values in zip(node.options, product(*(range(sizes[c]) for c in node.choices)), strict=True):
                full = _merge([*given.items(), *zip(node.choices, values, strict=True)])
                if full is not None:
                    placed = place(option, specs)
                    found.setdefault(placed)
                    rows.add((frozenset(full.items()), placed.output))
        result[node.name] = list(found)
        relations[node.name] = _without_idle_choices(frozenset(rows))
        relations = {name: relation for name, relation in relations.items() if last_read.get(name, -1) > position}
        for name, relation in relations.items():
            others = {c for other, r in relations.items() if other != name for c in _choices(r)}
            unseen = {c for c in _choices(relation) if last_slot[c] <= position and c not in others}
            relations[name] = _project(relation, unseen)
    return result


def placed_by_choices(space: Space) -> dict[str, dict[_Assignment, PlacedOp]]:
    """For every node and slot, the placed op under each assignment of the choices that decide it; every assignment is full.

    UserError if a node depends on so many choices that they cannot be listed.
    """
    sizes = {c.name: len(c.options) for c in space.choices}
    relations: dict[str, _Relation] = {INPUT: frozenset([(frozenset(), space.input)])}
    result: dict[str, dict[_Assignment, PlacedOp]] = {}
    for node in space.nodes:
        found: dict[_Assignment, PlacedOp] = {}
        count = prod(len(relations[i]) for i in dict.fromkeys(node.inputs))
        count *= len(node.options) if isinstance(node, Slot) else 1
        if count > MOST_ASSIGNMENTS:
            raise UserError(f"node {node.name} of {space.name} depends on too many choices to list", got=count)
        for inputs in product(*(sorted(relations[i], key=_order) for i in node.inputs)):
            given = _merge(pair for assignment, _ in inputs for pair in assignment)
            if given is None:
                continue
            specs = tuple(spec for _, spec in inputs)
            if not isinstance(node, Slot):
                found[frozenset(given.items())] = place(node.op, specs)
                continue
            for option, values in zip(node.options, product(*(range(sizes[c]) for c in node.choices)), strict=True):
                full = _merge([*given.items(), *zip(node.choices, values, strict=True)])
                if full is not None:
                    found[frozenset(full.items())] = place(option, specs)
        result[node.name] = found
        rows = frozenset((assignment, placed.output) for assignment, placed in found.items())
        relations[node.name] = _without_idle_choices(rows)
    return result


def _order(row: tuple[_Assignment, TensorSpec]) -> tuple[list[tuple[str, int]], tuple[int, ...]]:
    return sorted(row[0]), row[1].dims


def _choices(relation: _Relation) -> set[str]:
    return {choice for assignment, _ in relation for choice, _ in assignment}


def _merge(pairs: Iterable[tuple[str, int]]) -> dict[str, int] | None:
    """The assignment of these pairs, or None where they disagree."""
    merged: dict[str, int] = {}
    for choice, value in pairs:
        if merged.setdefault(choice, value) != value:
            return None
    return merged


def _project(relation: _Relation, gone: set[str]) -> _Relation:
    return frozenset((frozenset(p for p in assignment if p[0] not in gone), spec) for assignment, spec in relation)


def _without_idle_choices(relation: _Relation) -> _Relation:
    """The relation without the choices that do not decide the spec: with each value of theirs the rest is the same."""
    for choice in sorted(_choices(relation)):
        parts: dict[int, set[tuple[_Assignment, TensorSpec]]] = {}
        for assignment, spec in relation:
            value = next(v for c, v in assignment if c == choice)
            parts.setdefault(value, set()).add((frozenset(p for p in assignment if p[0] != choice), spec))
        first, *rest = parts.values()
        if all(part == first for part in rest):
            relation = frozenset(first)
    return relation
