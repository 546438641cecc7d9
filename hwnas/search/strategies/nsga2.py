"""NSGA-II (Deb et al. 2002): breeds generations along the whole Pareto front of accuracy and what it costs."""

from __future__ import annotations

import numpy as np

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.budget import LATENCY
from hwnas.search.genetic import cross, mutate
from hwnas.search.pareto import crowding_distances, dominance_ranks
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """objectives: metrics to keep low beside the error; by default the latency, or else the multiply-accumulates, if known."""

    def __init__(
        self, admission: Admission, seed: int, population: int = 20, crossover: float = 0.9, objectives: tuple[str, ...] = ()
    ) -> None:
        super().__init__(admission, seed)
        if type(population) is not int or population < 2 or not 0 <= crossover <= 1:
            raise UserError("nsga2 needs a population of 2 or more and crossover from 0 to 1", got=(population, crossover))
        known = admission.traits(admission.fallback).metrics
        unknown = [o for o in objectives if o not in known]
        if unknown:
            raise UserError("nsga2 has no such objective here", got=unknown[0], remedy=f"known: {', '.join(known) or 'none'}")
        self.objectives = objectives or tuple(m for m in (LATENCY, "macs") if m in known)[:1]
        self.size, self.crossover = population, crossover
        self.parents: list[tuple[Genotype, Score]] = []
        self.fitness: list[tuple[int, float]] = []  # of each parent: its front, minus its crowding distance
        self.children: list[tuple[Genotype, Score]] = []

    @property
    def seeks_front(self) -> bool:
        return True

    def ask(self, count: int = 1) -> list[Trial]:
        if len(self.children) >= self.size:
            self._survive()
        missing = min(count, self.size - len(self.children))
        if not self.parents:
            return [Trial(self.fresh(lambda: self.admission.sample(self.rng))) for _ in range(missing)]
        return [Trial(self.fresh(self._child)) for _ in range(missing)]

    def tell(self, trial: Trial, score: Score) -> None:
        self.children.append((trial.genotype, score))

    def _survive(self) -> None:
        """The better half of parents and children become parents: by front, and within one by crowding."""
        everybody = [*self.parents, *self.children]
        points = np.array([self._point(*member) for member in everybody])
        ranks = dominance_ranks(points)
        crowding = np.zeros(len(points))
        for rank in set(ranks.tolist()):
            crowding[ranks == rank] = crowding_distances(points[ranks == rank])
        fitness = [(int(r), -float(c)) for r, c in zip(ranks, crowding, strict=True)]
        order = sorted(range(len(everybody)), key=lambda i: fitness[i])[: self.size]
        self.parents, self.fitness, self.children = [everybody[i] for i in order], [fitness[i] for i in order], []

    def _point(self, genotype: Genotype, score: Score) -> list[float]:
        metrics = self.admission.traits(genotype).metrics
        return [-score.accuracy, *(metrics[o] for o in self.objectives)]

    def _child(self) -> Genotype:
        child = self._parent()
        if self.rng.random() < self.crossover:
            child = cross(self.admission, child, self._parent(), "uniform", self.rng)
        return mutate(self.admission, child, 1 / len(child), self.rng)

    def _parent(self) -> Genotype:
        """The better of two."""
        a, b = (self.rng.randrange(len(self.parents)) for _ in range(2))
        return self.parents[min(a, b, key=lambda i: self.fitness[i])][0]
