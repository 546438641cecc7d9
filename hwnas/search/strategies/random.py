"""Random search: the baseline that every other strategy has to beat (Li and Talwalkar 2019)."""

from __future__ import annotations

from hwnas.search import strategy
from hwnas.search.strategy import Score, Trial


class Strategy(strategy.Strategy):
    def ask(self, count: int = 1) -> list[Trial]:
        return [Trial(self.fresh(lambda: self.admission.sample(self.rng))) for _ in range(count)]

    def tell(self, trial: Trial, score: Score) -> None:
        """Nothing is learnt."""
