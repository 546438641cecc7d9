"""The default: judges by a Gaussian process while evaluations are few, and breeds from the best once they are many.

A Gaussian process finds more with each evaluation than anything else here (see `benchmarks/results`), but its cost grows with
the cube of their number. Whoever can afford that many evaluations has cheap ones: evolution then goes on from the best found.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.strategies.bayesian import Strategy as Bayesian
from hwnas.search.strategies.evolution import Strategy as Evolution
from hwnas.search.strategy import Score, Trial


class Strategy(strategy.Strategy):
    """`judged`: trials after which evolution takes over. front: as of `bayesian`."""

    def __init__(self, admission: Admission, seed: int, judged: int = 500, front: str = "") -> None:
        super().__init__(admission, seed)
        if type(judged) is not int or judged < 2:
            raise UserError("auto judges a whole number of trials, at least 2", got=judged)
        self.judged = judged
        self.surrogate = Bayesian(admission, seed, initial=min(10, judged), front=front)
        self.evolution = Evolution(admission, seed)
        self.told: list[tuple[Trial, Score]] = []

    def ask(self, count: int = 1) -> list[Trial]:
        if len(self.told) < self.judged:
            return self.surrogate.ask(min(count, self.judged - len(self.told)))
        return self.evolution.ask(count)

    def tell(self, trial: Trial, score: Score) -> None:
        self.told.append((trial, score))
        if len(self.told) < self.judged:
            self.surrogate.tell(trial, score)
        elif len(self.told) == self.judged:
            self.evolution.asked.update(self.admission.traits(t.genotype).key for t, _ in self.told)
            for earlier in sorted(self.told, key=lambda t: t[1].rank)[-self.evolution.size :]:
                self.evolution.tell(*earlier)
        else:
            self.evolution.tell(trial, score)
