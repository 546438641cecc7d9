"""Q-learning over the choices, one after another, with replay (Baker et al. 2017, MetaQNN)."""

from __future__ import annotations

from collections import defaultdict

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype

_TRIES = 20  # genotypes written before one is led back into the budget


class Strategy(strategy.Strategy):
    """A state is the number of a choice and the option taken before it; the reward, the accuracy, comes with the last choice.

    Epsilon falls from 1 to `least` in equal steps over `explore` trials; after each trial, `replay` earlier ones are learnt
    from again, at `rate`.
    """

    def __init__(
        self, admission: Admission, seed: int, explore: int = 60, least: float = 0.1, rate: float = 0.1, replay: int = 20
    ) -> None:
        super().__init__(admission, seed)
        if type(explore) is not int or explore < 1 or not 0 <= least <= 1 or not 0 < rate <= 1 or replay < 0:
            raise UserError("qlearning needs explore >= 1, least from 0 to 1, rate above 0", got=(explore, least, rate, replay))
        self.explore, self.least, self.rate, self.replay = explore, least, rate, replay
        self.sizes = [len(c.options) for c in admission.space.choices]
        self.values: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)  # of each state, of the options taken there
        self.told: list[tuple[Genotype, float]] = []

    def ask(self, count: int = 1) -> list[Trial]:
        return [Trial(self.fresh(self._write)) for _ in range(count)]

    def tell(self, trial: Trial, score: Score) -> None:
        self.told.append((trial.genotype, score.accuracy))
        self._learn(*self.told[-1])
        for _ in range(self.replay):
            self._learn(*self.rng.choice(self.told))

    def _write(self) -> Genotype:
        epsilon = max(self.least, 1 - len(self.told) / self.explore)
        genotype: Genotype = ()
        for _ in range(_TRIES):
            scores: list[list[float]] = []
            before = -1
            for t, size in enumerate(self.sizes):
                known = self.values.get((t, before), {})
                noise = [self.rng.random() for _ in range(size)]  # decides between equals
                greedy = self.rng.random() >= epsilon
                scores.append([known.get(o, 0.0) * greedy * 1e3 + noise[o] for o in range(size)])
                before = max(range(size), key=scores[-1].__getitem__)
            genotype = self.admission.space.from_scores(scores)
            if self.admission.admits(genotype):
                return genotype
        return self.admission.repair(genotype, self.rng)

    def _learn(self, genotype: Genotype, reward: float) -> None:
        """Backwards along the genotype, so that one pass carries the reward to the first choice."""
        target = reward
        for t in reversed(range(len(genotype))):
            state = self.values[t, genotype[t - 1] if t else -1]
            old = state.get(genotype[t], reward)  # an option's first value is what it brought
            state[genotype[t]] = old + self.rate * (target - old)
            target = max(state.values())
