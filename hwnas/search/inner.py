"""The inner search: the best genotypes when a prediction prices them, so that a million evaluations cost a second.

Two kinds of objectives. *Additive* ones are a sum of table entries, one for each choice (a latency table, a linear surrogate):
then everything runs natively. *Batch* ones are any function of many genotypes at once (trees, networks): then selection and
variation run natively around it. Small spaces are searched exactly, and the answer says so; additive ones of one or two
metrics are nearly always, whatever their size.

Metrics are minimised or limited from above: pass the negative of an accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.kernels.inner_search import (
    Problem,
    Variation,
    enumerate_front,
    evolve,
    exact_front,
    sample,
    select,
    vary,
)
from hwnas.space import Genotype, Space

MOST_ENUMERATED = 10**8
_CHUNK = 1 << 14  # genotypes that a batch objective is asked for at once when all are enumerated

Rows = NDArray[np.int64]  # [n, choices]
Values = NDArray[np.float64]  # [n, metrics]
Tables = Sequence[NDArray[np.float64]]  # for each choice [options, metrics]


@dataclass(frozen=True, eq=False)
class Answer:
    """The Pareto front of the objectives within the limits, in order of the first objective; one genotype a point.

    `exact`: it is the front of the whole space, and empty only if nothing keeps the limits. Otherwise it is what an evolution
    of `evaluated` genotypes found.
    """

    genotypes: list[Genotype]
    values: Values
    exact: bool
    method: Literal["layer by layer", "enumeration", "evolution"]
    evaluated: int

    @property
    def best(self) -> Genotype:
        """The genotype of the lowest first objective. UserError if nothing keeps the limits."""
        if not self.genotypes:
            known = "no genotype of the space keeps the limits" if self.exact else "no genotype was found that keeps the limits"
            raise UserError(known, remedy="relax a limit")
        return self.genotypes[0]


class _Layers:
    """A space as independent layers: a choice each, but the choices of a keep together are one, with their combinations."""

    def __init__(self, space: Space) -> None:
        index = {c.name: i for i, c in enumerate(space.choices)}
        sizes = [len(c.options) for c in space.choices]
        kept = {index[c] for keep in space.keeps for c in keep.choices}
        groups: list[tuple[tuple[int, ...], Rows]] = [
            ((i,), np.arange(sizes[i])[:, None]) for i in range(len(sizes)) if i not in kept
        ]
        for keep in space.keeps:
            indices = tuple(index[c] for c in keep.choices)
            groups.append((indices, np.array(list(_kept([sizes[i] for i in indices], keep.count, keep.absent)))))
        self.groups = sorted(groups, key=lambda group: group[0])
        self.choices = len(sizes)

    @property
    def options(self) -> list[int]:
        return [len(rows) for _, rows in self.groups]

    def rows(self, layered: NDArray[np.uint16]) -> Rows:
        """Genotypes of the space, [n, choices], from those of the layers."""
        found = np.empty((len(layered), self.choices), np.int64)
        for layer, (indices, rows) in enumerate(self.groups):
            found[:, indices] = rows[layered[:, layer]]
        return found

    def genotypes(self, layered: NDArray[np.uint16]) -> list[Genotype]:
        return [tuple(row) for row in self.rows(layered).tolist()]

    def tables(self, tables: Tables) -> list[NDArray[np.float64]]:
        """What an option of each layer adds to the metrics."""
        return [
            np.sum([np.asarray(tables[i])[rows[:, k]] for k, i in enumerate(indices)], axis=0) for indices, rows in self.groups
        ]

    def numbered(self, start: int, count: int) -> NDArray[np.uint16]:
        """The genotypes of the layers from number `start` on, the last layer counting fastest."""
        return np.stack(np.unravel_index(np.arange(start, start + count), self.options), axis=1).astype(np.uint16)


def _kept(sizes: Sequence[int], count: int, absent: int) -> Iterator[list[int]]:
    for present in combinations(range(len(sizes)), count):
        for values in product(*([o for o in range(sizes[i]) if o != absent] for i in present)):
            row = [absent] * len(sizes)
            for i, value in zip(present, values, strict=True):
                row[i] = value
            yield row


def search_additive(
    space: Space,
    tables: Tables,
    *,
    objectives: int,
    limits: Sequence[float] = (),
    variation: Variation = Variation(population=1000),  # noqa: B008 (frozen)
    generations: int = 200,
    threads: int | None = None,
) -> Answer:
    """The front where metric j of a genotype is the sum of `tables[choice][option, j]` over its choices.

    The first `objectives` metrics are minimised, all are kept within `limits` (infinity: none). Exact for one or two metrics
    unless the front is huge, and for any number of metrics in spaces of up to 10^8 genotypes.
    """
    if [len(t) for t in tables] != [len(c.options) for c in space.choices]:
        raise UserError(
            "additive objectives need a row of metrics for each option of each choice", got=[len(t) for t in tables]
        )
    layers = _Layers(space)
    problem = Problem(layers.tables(tables), objectives, limits)
    found = exact_front(problem) if problem.metrics <= 2 else None
    if found is not None:
        return Answer(layers.genotypes(found[0]), found[1], True, "layer by layer", 0)
    if problem.size <= MOST_ENUMERATED:
        genotypes, values = enumerate_front(problem, threads)
        return Answer(layers.genotypes(genotypes), values, True, "enumeration", problem.size)
    genotypes, values, _ = evolve(problem, variation, generations, threads)
    return _evolved(layers, problem, genotypes, values, generations * variation.population)


def search_batch(
    space: Space,
    score: Callable[[Rows], Values],
    *,
    metrics: int,
    objectives: int,
    limits: Sequence[float] = (),
    variation: Variation = Variation(population=1000),  # noqa: B008 (frozen)
    generations: int = 200,
    most_enumerated: int = MOST_ENUMERATED,
    threads: int | None = None,
) -> Answer:
    """The front where `score` maps genotypes [n, choices] to metrics [n, metrics]. Exact in spaces up to `most_enumerated`."""
    layers = _Layers(space)
    problem = Problem([np.zeros((n, metrics)) for n in layers.options], objectives, limits)

    def scored(layered: NDArray[np.uint16]) -> Values:
        values = np.ascontiguousarray(score(layers.rows(layered)), np.float64)
        if values.shape != (len(layered), metrics):
            raise ValueError(f"the score of {len(layered)} genotypes is [{len(layered)}, {metrics}], got {list(values.shape)}")
        return values

    if problem.size <= most_enumerated:
        genotypes, values = np.empty((0, problem.layers), np.uint16), np.empty((0, metrics))
        for start in range(0, problem.size, _CHUNK):
            fresh = layers.numbered(start, min(_CHUNK, problem.size - start))
            found = scored(fresh)
            within = (found <= problem.bounds).all(1)
            genotypes, values = np.concatenate([genotypes, fresh[within]]), np.concatenate([values, found[within]])
            genotypes, values = _first_front(problem, genotypes, values)
        return Answer(layers.genotypes(genotypes), values, True, "enumeration", problem.size)

    genotypes = sample(problem, variation, threads)
    values = scored(genotypes)
    indices, fitness = select(problem, genotypes, values, variation.population)
    genotypes, values = genotypes[indices], values[indices]
    for generation in range(1, generations):
        children = vary(problem, variation, genotypes, values, fitness, generation, threads)
        genotypes, values = np.concatenate([genotypes, children]), np.concatenate([values, scored(children)])
        indices, fitness = select(problem, genotypes, values, variation.population)
        genotypes, values = genotypes[indices], values[indices]
    return _evolved(layers, problem, genotypes, values, generations * variation.population)


def tabulate(space: Space, metrics: Callable[[Genotype], Sequence[float]], *, checks: int = 64, seed: int = 0) -> Tables | None:
    """The tables of metrics that are sums over the choices, or None if they are not.

    Asks for one genotype and its neighbours in every choice, and compares the sums on `checks` random genotypes. A space with
    keeps has no such neighbours: None.
    """
    if space.keeps:
        return None
    rng = Random(seed)
    base = space.sample(rng)
    at_base = np.array(metrics(base), np.float64)
    tables = []
    for i, choice in enumerate(space.choices):
        neighbours = [(*base[:i], o, *base[i + 1 :]) for o in range(len(choice.options))]
        tables.append(np.array([metrics(g) for g in neighbours], np.float64) - (at_base if i else 0))
    for genotype in (space.sample(rng) for _ in range(checks)):
        summed = sum(table[o] for table, o in zip(tables, genotype, strict=True))
        if not np.allclose(summed, metrics(genotype), rtol=1e-6, atol=0):
            return None
    return tables


def _evolved(layers: _Layers, problem: Problem, genotypes: NDArray[np.uint16], values: Values, evaluated: int) -> Answer:
    within = (values <= problem.bounds).all(1)
    genotypes, values = _first_front(problem, genotypes[within], values[within])
    return Answer(layers.genotypes(genotypes), values, False, "evolution", evaluated)


def _first_front(problem: Problem, genotypes: NDArray[np.uint16], values: Values) -> tuple[NDArray[np.uint16], Values]:
    """The points that no other one dominates, in order, one of equals."""
    indices, fitness = select(problem, genotypes, values, len(genotypes))
    indices = indices[fitness["rank"] == 0]
    goals = values[indices, : problem.objectives]
    fresh = np.ones(len(indices), bool)
    fresh[1:] = (goals[1:] != goals[:-1]).any(1)
    return genotypes[indices[fresh]], values[indices[fresh]]
