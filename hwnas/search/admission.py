"""Admission: which genotypes a budget admits, by prediction, and how to find some when they are rare.

Strategies see genotypes and numbers: the number is by what share a genotype exceeds the budget.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hwnas.space import Genotype, Space

Violation = Callable[[Genotype], float]


@dataclass(frozen=True)
class Traits:
    """What is known of a genotype before it is evaluated, as far as the wiring tells.

    `key` names its network: two genotypes may spell one. `metrics`: predicted latency and cost. `counts`: what its network
    is made of, views of counted labels. `chance`: the probability that it keeps the budget, since a prediction may err.
    """

    key: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    chance: float = 1.0


def spelled(genotype: Genotype) -> Traits:
    """What is known where nobody tells more: its spelling."""
    return Traits(str(genotype))


_TRIES = 200  # neighbours tried from one start


def descend(space: Space, start: Genotype, value: Callable[[Genotype], float], rng: random.Random, goal: float) -> Genotype:
    """Walks from `start` over neighbours of lower or equal value until the goal is met or no try has helped for long."""
    best, best_value, since = start, value(start), 0
    while best_value > goal and since < _TRIES:
        neighbour = space.mutate(best, rng)
        neighbour_value = value(neighbour)
        since = 0 if neighbour_value < best_value else since + 1
        if neighbour_value <= best_value:
            best, best_value = neighbour, neighbour_value
    return best


def smallest(space: Space, value: Callable[[Genotype], float], seed: int = 0, starts: int = 4) -> Genotype:
    """The genotype of the lowest value that coordinate descent finds from several starts."""
    rng = random.Random(seed)
    found = []
    for _ in range(starts):
        current = descend(space, space.sample(rng), value, rng, float("-inf"))
        improved = True
        while improved and not space.keeps:  # finish exactly; moves within a keep are left to the walk above
            improved = False
            for i, choice in enumerate(space.choices):
                options = [(*current[:i], o, *current[i + 1 :]) for o in range(len(choice.options))]
                best = min(options, key=value)
                if value(best) < value(current):
                    current, improved = best, True
        found.append(current)
    return min(found, key=value)


class Admission:
    """Samples and mutations that the budget admits: all that strategies see of a space.

    `fallback` is a genotype known to be admitted; `traits` tells what is known of a genotype for free. A space of at most
    `listing` genotypes may be looked through as a whole: a matter of what traits cost. `price`: seconds that one evaluation
    takes, to an order of magnitude; infinite where nobody knows, and worth much thought before it is spent.
    """

    def __init__(
        self,
        space: Space,
        violation: Violation,
        fallback: Genotype,
        traits: Callable[[Genotype], Traits] = spelled,
        listing: int = 2_000,
        price: float = float("inf"),
    ) -> None:
        self.space = space
        self.violation = violation
        self.fallback = fallback
        self.traits = traits
        self.listing = listing
        self.price = price

    def admits(self, genotype: Genotype) -> bool:
        return self.violation(genotype) == 0

    def sample(self, rng: random.Random) -> Genotype:
        """A random genotype within the budget: drawn uniformly where that succeeds soon, else walked down from a random one."""
        for _ in range(20):
            genotype = self.space.sample(rng)
            if self.violation(genotype) == 0:
                return genotype
        for _ in range(5):
            genotype = descend(self.space, self.space.sample(rng), self.violation, rng, 0.0)
            if self.violation(genotype) == 0:
                return genotype
        return self.fallback

    def promising(self, rng: random.Random, among: int) -> Genotype:
        """Of so many samples the one with the most multiply-accumulates, or else parameters, where these are known.

        What a budget admits is the better, as a rule, the more of the budget it uses.
        """
        known = self.traits(self.fallback).metrics
        metric = next((m for m in ("macs", "params") if m in known), None)
        if metric is None:
            return self.sample(rng)
        return max((self.sample(rng) for _ in range(among)), key=lambda g: self.traits(g).metrics[metric])

    def mutate(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """A neighbour within the budget; after many tries in vain, a fresh sample."""
        for _ in range(_TRIES):
            neighbour = self.space.mutate(genotype, rng)
            if neighbour != genotype and self.violation(neighbour) == 0:
                return neighbour
        return self.sample(rng)

    def repair(self, genotype: Genotype, rng: random.Random) -> Genotype:
        """The genotype itself if it is within the budget, else one that is, reached from it downhill where possible."""
        found = descend(self.space, genotype, self.violation, rng, 0.0)
        return found if self.violation(found) == 0 else self.sample(rng)
