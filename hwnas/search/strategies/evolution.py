"""Regularized evolution (Real et al. 2019, algorithm 1): good parents breed, the oldest dies, whatever its worth."""

from __future__ import annotations

from collections import deque

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.genetic import CROSSOVERS, SELECTIONS, cross, mutate, select
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """`population` P and tournament `sample` S of the paper, where crossover, elite and mutation rate are 0.

    selection: `tournament`, or `roulette` by rank. crossover: the chance of a second parent, of the given `kind`: `one_point`,
    `two_point` or `uniform`. elite: how many of the best never die. mutation: the chance of each choice to change; 0 changes
    one.
    """

    def __init__(
        self, admission: Admission, seed: int, population: int = 32, sample: int = 8, crossover: float = 0.25,
        kind: str = "uniform", selection: str = "tournament", elite: int = 0, mutation: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(admission, seed)
        whole = all(type(n) is int for n in (population, sample, elite))
        if not whole or not 1 <= sample <= population or not 0 <= crossover <= 1 or not 0 <= elite < population:
            raise UserError(
                "evolution needs whole numbers 1 <= sample <= population, crossover from 0 to 1 and elite below population",
                got=(sample, population, crossover, elite),
            )
        if kind not in CROSSOVERS or selection not in SELECTIONS or not 0 <= mutation <= 1:
            raise UserError(
                "evolution knows no such operator", got=(kind, selection, mutation),
                remedy=f"crossovers: {', '.join(CROSSOVERS)}; selections: {', '.join(SELECTIONS)}; mutation from 0 to 1",
            )  # fmt: skip
        self.size, self.sample, self.crossover = population, sample, crossover
        self.kind, self.selection, self.elite, self.mutation = kind, selection, elite, mutation
        self.population: deque[tuple[Genotype, Score]] = deque()

    def ask(self, count: int = 1) -> list[Trial]:
        missing = self.size - len(self.population)
        if missing > 0:
            return [Trial(self.fresh(lambda: self.admission.sample(self.rng))) for _ in range(min(count, missing))]
        return [Trial(self.fresh(self._child)) for _ in range(count)]

    def tell(self, trial: Trial, score: Score) -> None:
        self.population.append((trial.genotype, score))
        if len(self.population) > self.size:
            best = sorted(self.population, key=lambda member: member[1].rank)[len(self.population) - self.elite :]
            self.population.remove(next(m for m in self.population if not any(m is e for e in best)))

    def _child(self) -> Genotype:
        child = self._parent()
        if self.rng.random() < self.crossover:
            child = cross(self.admission, child, self._parent(), self.kind, self.rng)
        return mutate(self.admission, child, self.mutation, self.rng)

    def _parent(self) -> Genotype:
        return select(list(self.population), self.selection, self.sample, self.rng)
