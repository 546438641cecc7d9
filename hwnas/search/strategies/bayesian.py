"""Bayesian optimisation: a Gaussian process over what networks are made of (Ru et al. 2021; White et al. 2021, BANANAS).

Expected improvement (Mockus 1978) and upper confidence bound (Srinivas et al. 2010), times the probability of meeting the
budget (Gardner et al. 2014). The noise of a training counts as part of what an evaluation may bring, so that a second spelling
of a good network is worth asking where each is trained on its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from hwnas.errors import UserError
from hwnas.regress.block_gp import BlockGP, fit_block_gp
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.pool import Pool, Rows
from hwnas.search.strategy import Score, Trial

Array = NDArray[np.float64]

_PARENTS = 8  # of the candidates that join an evolving pool
_PROPOSALS = 12  # of hyper-parameters, at every ask
_SOFTENING = 0.25  # keeps the best at a finite place of the stretched scale


class Strategy(strategy.Strategy):
    """`initial` random trials, then the largest `acquisition`: `ei`, or `ucb` with `beta` standard deviations.

    front: a metric, such as `latency_ms`, over which a whole Pareto front is sought: the expected growth of its hypervolume.
    exhaustive: spaces of at most so many genotypes are judged as a whole, larger ones by an evolving pool.
    """

    def __init__(
        self, admission: Admission, seed: int, initial: int = 10, acquisition: str = "ei", beta: float = 2.0, front: str = "",
        exhaustive: int = 20_000,
    ) -> None:  # fmt: skip
        super().__init__(admission, seed)
        if initial < 2 or acquisition not in ("ei", "ucb"):
            raise UserError("bayesian needs initial >= 2 and acquisition ei or ucb", got=(initial, acquisition))
        if front and front not in admission.traits(admission.fallback).metrics:
            raise UserError("front names a metric that is predicted here", got=front)
        self.initial, self.acquisition, self.beta, self.front, self.exhaustive = initial, acquisition, beta, front, exhaustive
        self.numbers = np.random.default_rng(seed)
        self.values: list[float] = []
        self.pool: Pool | None = None
        self.process: BlockGP | None = None

    def ask(self, count: int = 1) -> list[Trial]:
        self.pool = self.pool or Pool(self.admission, self.rng, self.exhaustive)
        if len(self.values) < self.initial:
            genotypes = [
                self.fresh(lambda: self.admission.sample(self.rng)) for _ in range(min(count, self.initial - len(self.values)))
            ]
            for genotype in genotypes:
                self.pool.ask(genotype)
            return [Trial(g) for g in genotypes]
        best = np.argsort(self.values)[::-1][:_PARENTS]
        self.pool.grow([self.pool.genotypes[self.pool.asked[i]] for i in best])
        y = (clipped if self.front else stretched)(np.array(self.values))
        trials = []
        for i in range(count):  # later ones of a batch believe what is expected of the earlier
            between = self.pool.distances()[:, :, self.pool.asked].astype(np.float64)
            self.process = fit_block_gp(between, y, self.numbers, self.process, 0 if i else _PROPOSALS)
            open_rows = self.pool.open()
            mean, deviation = self.process.predict(self.pool.distances()[:, :, open_rows])
            chosen = int(np.argmax(self._worth(mean, deviation, open_rows, y)))
            y = np.append(y, mean[chosen])
            genotype = self.pool.genotypes[open_rows[chosen]]
            self.pool.ask(genotype)
            trials.append(Trial(genotype))
        return trials

    def _worth(self, mean: Array, deviation: Array, rows: Rows, y: Array) -> Array:
        """What asking each of the rows promises."""
        assert self.pool
        if self.front:
            worth = self._growth(mean, deviation, rows, y)
        elif self.acquisition == "ucb":
            worth = mean + self.beta * deviation - y.min()
        else:
            worth = improvement(mean, deviation, float(y.max()))
        return worth * self.pool.chances[rows]

    def _growth(self, mean: Array, deviation: Array, rows: Rows, y: Array) -> Array:
        """Expected hypervolume improvement (Emmerich et al. 2006) where one objective is known: improvement, summed over costs."""
        assert self.pool
        cost = self.pool.metric(self.front)
        own, told = cost[rows], sorted(zip(cost[self.pool.asked], y, strict=True))
        steps = [(0.0, float(y.min()) - 1)]  # from this cost on, this is reached
        for at, value in told:
            if value > steps[-1][1]:
                steps.append((at, value))
        ends = [at for at, _ in steps[1:]] + [float(cost.max())]
        worth = np.zeros(len(rows))
        for (start, reached), end in zip(steps, ends, strict=True):
            width = end - np.maximum(start, own)
            there = np.flatnonzero(width > 0)
            worth[there] += width[there] * improvement(mean[there], deviation[there], reached)
        return worth

    def tell(self, trial: Trial, score: Score) -> None:
        self.values.append(score.accuracy)


def improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected improvement over `best` of normally distributed values."""
    z = (mean - best) / deviation
    expected: Array = deviation * (z * norm.cdf(z) + norm.pdf(z))
    return expected


def stretched(values: Array) -> Array:
    """Values on a scale of the logarithm of their distance from the best, standardised.

    Networks that fail altogether would otherwise flatten the differences between good ones, which are all that counts.
    """
    best, middle = values.max(), np.median(values)
    return _standardised(-np.log((best - values) / max(best - middle, 1e-12) + _SOFTENING))


def clipped(values: Array) -> Array:
    """Values with failures raised to the lower fence of Tukey, standardised."""
    low, high = np.quantile(values, (0.25, 0.75))
    return _standardised(np.maximum(values, low - 1.5 * (high - low)))


def _standardised(values: Array) -> Array:
    standardised: Array = (values - values.mean()) / max(float(values.std()), 1e-12)
    return standardised
