"""Hyperband: many trials with little training each, of which the better ones get more.

Successive halving (Jamieson and Talwalkar 2016) in brackets of different courage (Li et al. 2017).
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """factor: of a rung's trials one in so many goes on, with that many times the training; rungs: of the longest bracket.

    The lowest fidelity is factor^(1 - rungs). Brackets of `rungs`, `rungs - 1`, ... rungs take turns; a bracket of one rung is
    random search.
    """

    def __init__(self, admission: Admission, seed: int, factor: int = 3, rungs: int = 3) -> None:
        super().__init__(admission, seed)
        if type(factor) is not int or type(rungs) is not int or factor < 2 or rungs < 1:
            raise UserError("halving needs whole numbers factor >= 2 and rungs >= 1", got=(factor, rungs))
        self.factor, self.rungs = factor, rungs
        self.bracket = 0  # of the present cycle: brackets begun
        self.rung = 0  # above the full fidelity: 0 is full
        self.waiting: list[Genotype] = []
        self.done: list[tuple[Genotype, Score]] = []

    def ask(self, count: int = 1) -> list[Trial]:
        if not self.waiting:
            self._advance()
        batch, self.waiting = self.waiting[:count], self.waiting[count:]
        return [Trial(g, float(self.factor) ** -self.rung) for g in batch]

    def tell(self, trial: Trial, score: Score) -> None:
        self.done.append((trial.genotype, score))

    def _advance(self) -> None:
        """The next rung of this bracket with the best of the last one, or the next bracket."""
        if self.done and self.rung > 0:
            better = sorted(self.done, key=lambda member: member[1].rank, reverse=True)
            self.waiting = [genotype for genotype, _ in better[: max(1, len(better) // self.factor)]]
            self.rung -= 1
        else:
            self.rung = self.rungs - 1 - self.bracket % self.rungs
            self.bracket += 1
            width = -(-self.rungs * self.factor**self.rung // (self.rung + 1))  # equal effort for each bracket
            self.waiting = [self.fresh(lambda: self.admission.sample(self.rng)) for _ in range(width)]
        self.done = []
