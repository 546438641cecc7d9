"""Local search: climbs to the first better neighbour, and starts anew where there is none (White et al. 2021, Local search)."""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """`patience`: neighbours without gain after which it restarts; 0 for as many as a genotype has."""

    def __init__(self, admission: Admission, seed: int, patience: int = 0) -> None:
        super().__init__(admission, seed)
        if type(patience) is not int or patience < 0:
            raise UserError("local needs a whole number of patience, at least 0", got=patience)
        self.patience = patience or sum(len(c.options) - 1 for c in admission.space.choices)
        self.current: tuple[Genotype, Score] | None = None
        self.failed = 0

    def ask(self, count: int = 1) -> list[Trial]:
        if self.current is None or self.failed >= self.patience:
            self.current, self.failed = None, 0
            return [Trial(self.fresh(lambda: self.admission.sample(self.rng)))]
        start, _ = self.current
        return [Trial(self.fresh(lambda: self.admission.mutate(start, self.rng))) for _ in range(count)]

    def tell(self, trial: Trial, score: Score) -> None:
        if self.current is None or score.rank > self.current[1].rank:
            self.current, self.failed = (trial.genotype, score), 0
        else:
            self.failed += 1
