"""The default: judges by a Gaussian process as long as an evaluation is worth the thought, then breeds or looks at the rest.

A Gaussian process finds more with each evaluation than anything else here (see `benchmarks/results`), but thinks the longer the
more it was told. Where an evaluation costs less than the thought that it saves, more evaluations are the better bargain:
evolution goes on from the best found, or, in a space small enough to be listed, all that is left in the order of what is
expected of it.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.strategies.bayesian import Strategy as Bayesian
from hwnas.search.strategies.evolution import Strategy as Evolution
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype

_LEAST, _MOST = 50, 500  # trials judged: fewer teach too little, more take too much memory
_THOUGHT = 0.06, 5e-7  # seconds of an ask: constant, and times the square of the trials told; in `mobilenet`, one core
_WORTH = 10.0  # evolution needs 1000 to 2000 evaluations of NAS-Bench-201 for what the process finds in 100


class Strategy(strategy.Strategy):
    """`judged`: trials after which it judges no more, 0 for what the price of an evaluation is worth. front: as of `bayesian`.

    A space that can be listed is judged as a whole, and looked through to its end; of a larger one a pool is judged that
    evolves, and evolution goes on.
    """

    def __init__(self, admission: Admission, seed: int, judged: int = 0, front: str = "") -> None:
        super().__init__(admission, seed)
        if type(judged) is not int or judged < 0 or judged == 1:
            raise UserError("auto judges a whole number of trials, at least 2, or 0 to choose it", got=judged)
        self.judged = judged or worth_judging(admission.price)
        self.surrogate = Bayesian(admission, seed, initial=min(10, self.judged), front=front)
        self.evolution = Evolution(admission, seed)
        self.told: list[tuple[Trial, Score]] = []
        self.rest: list[Genotype] = []  # of a listed space, the most promising last

    @property
    def seeks_front(self) -> bool:
        return self.surrogate.seeks_front

    def ask(self, count: int = 1) -> list[Trial]:
        if len(self.told) < self.judged:
            return self.surrogate.ask(min(count, self.judged - len(self.told)))
        if self.rest:
            return [Trial(self.rest.pop()) for _ in range(min(count, len(self.rest)))]
        return self.evolution.ask(count)

    def tell(self, trial: Trial, score: Score) -> None:
        self.told.append((trial, score))
        if len(self.told) <= self.judged:
            self.surrogate.tell(trial, score)
        else:
            self.evolution.tell(trial, score)
        if len(self.told) == self.judged:
            self.rest = self.surrogate.ranking()[::-1]
            self.evolution.asked.update(self.admission.traits(t.genotype).key for t, _ in self.told)
            for earlier in sorted(self.told, key=lambda t: t[1].rank)[-self.evolution.size :]:
                self.evolution.tell(*earlier)


def worth_judging(price: float) -> int:
    """Trials until an ask of the process takes as long as the evaluations that it saves; `price` of one in seconds."""
    constant, quadratic = _THOUGHT
    return int(min(max((max(0.0, _WORTH * price - constant) / quadratic) ** 0.5, _LEAST), _MOST))
