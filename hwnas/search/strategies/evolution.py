"""Regularized evolution (Real et al. 2019, algorithm 1): tournaments choose parents, the oldest dies, whatever its worth."""

from __future__ import annotations

from collections import deque

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """`population` P and tournament `sample` S of the paper; `crossover` is the chance of a second parent (0 in the paper)."""

    def __init__(self, admission: Admission, seed: int, population: int = 32, sample: int = 8, crossover: float = 0.25) -> None:
        super().__init__(admission, seed)
        whole = type(population) is int and type(sample) is int
        if not whole or not 1 <= sample <= population or not 0 <= crossover <= 1:
            raise UserError(
                "evolution needs whole numbers 1 <= sample <= population and crossover from 0 to 1",
                got=(sample, population, crossover),
            )
        self.size, self.tournament, self.crossover = population, sample, crossover
        self.population: deque[tuple[Genotype, strategy.Score]] = deque(maxlen=population)

    def ask(self) -> Genotype:
        if len(self.population) < self.size:
            return self.admission.sample(self.rng)
        parent = self._parent()
        if self.rng.random() < self.crossover:
            child = self.admission.space.crossover(parent, self._parent(), self.rng)
            if self.admission.violation(child) == 0:
                parent = child
        return self.admission.mutate(parent, self.rng)

    def tell(self, genotype: Genotype, score: strategy.Score) -> None:
        self.population.append((genotype, score))

    def _parent(self) -> Genotype:
        tournament = self.rng.sample(list(self.population), self.tournament)
        return max(tournament, key=lambda member: member[1].rank)[0]
