"""Hybrid of policy and evolution: a controller proposes, genetic operators recombine, the controller learns from both.

After evolution-guided policy search (Khadka and Tumer 2018), over genotypes.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search.admission import Admission
from hwnas.search.genetic import cross, mutate, select
from hwnas.search.strategies import reinforce
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(reinforce.Strategy):
    """share: the chance that a trial is bred from the `population` best instead of written by the controller."""

    def __init__(
        self, admission: Admission, seed: int, share: float = 0.7, population: int = 16, sample: int = 4, batch: int = 8,
        rate: float = 0.02, entropy: float = 0.01, replay: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(admission, seed, batch=batch, rate=rate, entropy=entropy, replay=replay)
        if not 0 <= share <= 1 or not 1 <= sample <= population:
            raise UserError("hybrid needs share from 0 to 1 and 1 <= sample <= population", got=(share, sample, population))
        self.share, self.size, self.sample = share, population, sample
        self.population: list[tuple[Genotype, Score]] = []

    def ask(self, count: int = 1) -> list[Trial]:
        left = self.batch - len(self.told) % self.batch
        return [Trial(self.fresh(self._propose)) for _ in range(min(count, left))]

    def tell(self, trial: Trial, score: Score) -> None:
        self.population.append((trial.genotype, score))
        self.population = sorted(self.population, key=lambda member: member[1].rank)[-self.size :]
        super().tell(trial, score)

    def _propose(self) -> Genotype:
        if len(self.told) < self.batch or self.rng.random() >= self.share:
            return self.controller.write(self.rng)
        a, b = (select(self.population, "tournament", self.sample, self.rng) for _ in range(2))
        return mutate(self.admission, cross(self.admission, a, b, "uniform", self.rng), 0.0, self.rng)
