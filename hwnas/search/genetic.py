"""Genetic operators over genotypes: selection, crossover and mutation that keep to the space and the budget."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hwnas.search.admission import Admission
from hwnas.search.strategy import Score
from hwnas.space import Genotype

SELECTIONS = ("tournament", "roulette")
CROSSOVERS = ("uniform", "one_point", "two_point")


def select(population: Sequence[tuple[Genotype, Score]], selection: str, sample: int, rng: random.Random) -> Genotype:
    """A parent: the best of `sample` drawn members, or one drawn with a chance that grows linearly with its rank."""
    if selection == "tournament":
        return max(rng.sample(list(population), min(sample, len(population))), key=lambda member: member[1].rank)[0]
    ranked = sorted(population, key=lambda member: member[1].rank)
    return rng.choices(ranked, weights=range(1, len(ranked) + 1))[0][0]


def cross(admission: Admission, a: Genotype, b: Genotype, kind: str, rng: random.Random) -> Genotype:
    """A child of two parents that the budget admits, or the first parent."""
    child = admission.space.crossover(a, b, rng, kind)
    return child if admission.admits(child) else a


def mutate(admission: Admission, genotype: Genotype, rate: float, rng: random.Random) -> Genotype:
    """An admitted neighbour; with a rate, as many single changes as there are choices that a coin of that rate picks."""
    changes = sum(rng.random() < rate for _ in admission.space.choices)
    for _ in range(max(1, changes)):
        genotype = admission.mutate(genotype, rng)
    return genotype
