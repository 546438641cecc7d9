"""Random search: the baseline that every other strategy has to beat (Li and Talwalkar 2019)."""

from __future__ import annotations

from hwnas.search import strategy
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    def ask(self) -> Genotype:
        return self.admission.sample(self.rng)

    def tell(self, genotype: Genotype, score: strategy.Score) -> None:
        """Nothing is learnt."""
