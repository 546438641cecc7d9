"""Search by an accuracy predictor, batch by batch: an ensemble learns from what was told and picks what it may be best at.

Predictor-based search (Wen et al. 2020) with the disagreement of an ensemble as its uncertainty (White et al. 2021, BANANAS).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.encoding import Array
from hwnas.search.pool import Pool
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype

_MEMBERS = {"trees": 100, "mlp": 5}
_PARENTS = 8  # whose neighbours join an evolving pool


class Strategy(strategy.Strategy):
    """model: `trees` (a random forest) or `mlp` (an ensemble of small networks). Each member of the ensemble in turn picks its
    best candidate (Thompson sampling), `batch` for one training. members: 0 for 100 trees or 5 networks.
    """

    def __init__(
        self, admission: Admission, seed: int, model: str = "trees", batch: int = 10, initial: int = 20, members: int = 0
    ) -> None:
        super().__init__(admission, seed)
        if model not in _MEMBERS or batch < 1 or initial < 2 or members < 0:
            raise UserError("predictor has model trees or mlp, batch >= 1, initial >= 2", got=(model, batch, initial, members))
        self.model, self.batch, self.initial, self.members = model, batch, initial, members or _MEMBERS[model]
        self.numbers = np.random.default_rng(seed)
        self.told: list[tuple[Genotype, Score]] = []
        self.queue: list[Genotype] = []  # picked by the last training
        self.pool: Pool | None = None

    def ask(self, count: int = 1) -> list[Trial]:
        left = self.initial - len(self.told)
        if left > 0:
            found = [self.fresh(lambda: self.admission.sample(self.rng)) for _ in range(min(count, left))]
        else:
            self.pool = self.pool or Pool(self.admission, self.rng)
            if not self.queue:
                self._train(self.pool)
            found, self.queue = self.queue[:count], self.queue[count:]
        return [Trial(g) for g in found]

    def tell(self, trial: Trial, score: Score) -> None:
        self.told.append((trial.genotype, score))

    def _train(self, pool: Pool) -> None:
        """Fills the queue."""
        best = sorted(self.told, key=lambda told: told[1].rank, reverse=True)[:_PARENTS]
        pool.grow([genotype for genotype, _ in best])
        for genotype, _ in self.told[len(pool.asked) :]:
            pool.ask(genotype)
        y = np.array([score.accuracy for _, score in self.told])
        order = np.argsort(np.argsort(y)) / max(len(y) - 1, 1)  # ranks, which failed networks cannot distort
        everything = pool.features(slice(None))
        guesses = self._guesses(pool.features(pool.asked), order, everything)
        open_rows = pool.open()
        for member in self.numbers.choice(len(guesses), self.batch, replace=len(guesses) < self.batch):
            chosen = int(np.argmax(np.where(open_rows, guesses[member] * pool.chances, -np.inf)))
            open_rows = open_rows & (np.arange(len(open_rows)) != chosen)
            self.queue.append(pool.genotypes[chosen])
            if not open_rows.any():
                break

    def _guesses(self, x: Array, y: NDArray[np.float64], candidates: Array) -> NDArray[np.float64]:
        """What each member of the ensemble thinks [members, candidates], trained on a resample of x [n, features] and y [n]."""
        seed = int(self.numbers.integers(2**31))
        if self.model == "trees":
            forest = RandomForestRegressor(self.members, random_state=seed, max_features=1 / 3).fit(x, y)
            return np.stack([tree.predict(candidates) for tree in forest.estimators_])
        members = []
        for i in range(self.members):
            rows = self.numbers.integers(len(y), size=len(y))
            net = MLPRegressor(hidden_layer_sizes=(64, 64), solver="lbfgs", alpha=1e-2, max_iter=100, random_state=seed + i)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # to stop early is meant
                members.append(net.fit(x[rows], y[rows]).predict(candidates))
        return np.stack(members)
