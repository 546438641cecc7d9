"""Bayesian optimisation: a Gaussian process over what networks are made of (Ru et al. 2021; White et al. 2021, BANANAS).

Expected improvement (Mockus 1978) and upper confidence bound (Srinivas et al. 2010), times the probability of meeting the
budget (Gardner et al. 2014). The noise of a training counts as part of what an evaluation may bring, so that a second spelling
of a good network is worth asking where each is trained on its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hwnas.errors import UserError
from hwnas.regress.block_gp import BlockGP, fit_block_gp
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.pool import Pool
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype

Array = NDArray[np.float64]

_PARENTS = 8  # of the candidates that join an evolving pool
_FIRST_PROPOSALS, _PROPOSALS = 60, 12  # of hyper-parameters: at the first ask that judges, and at every later one
_SOFTENING = 0.25  # keeps the best at a finite place of the stretched scale


class Strategy(strategy.Strategy):
    """`initial` random trials, then the largest `acquisition`: `ei`, or `ucb` with `beta` standard deviations.

    larger: each of the first is the largest of so many samples, which a budget makes a good guess; 1 for plain random ones.
    front: a metric, such as `latency_ms`, over which a whole Pareto front is sought: the expected growth of its hypervolume.
    Small spaces are judged as a whole, larger ones by an evolving pool.
    """

    def __init__(
        self, admission: Admission, seed: int, initial: int = 10, acquisition: str = "ei", beta: float = 2.0, front: str = "",
        larger: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(admission, seed)
        if type(initial) is not int or initial < 2 or acquisition not in ("ei", "ucb"):
            raise UserError("bayesian needs initial >= 2 and acquisition ei or ucb", got=(initial, acquisition))
        if type(larger) is not int or larger < 1:
            raise UserError("bayesian takes the largest of a whole number of samples, at least 1", got=larger)
        known = admission.traits(admission.fallback).metrics
        if front and front not in known:
            raise UserError(
                "front names a metric that is known beforehand", got=front, remedy=f"known here: {', '.join(known) or 'none'}"
            )
        self.initial, self.acquisition, self.beta, self.front = initial, acquisition, beta, front
        self.larger = 1 if front else larger  # a front has small networks too
        self.numbers = np.random.default_rng(seed)
        self.told: list[tuple[Genotype, Score]] = []
        self.pool: Pool | None = None
        self.process: BlockGP | None = None

    @property
    def seeks_front(self) -> bool:
        return bool(self.front)

    def ask(self, count: int = 1) -> list[Trial]:
        left = self.initial - len(self.told)
        if left > 0:
            return [Trial(self.fresh(self._first)) for _ in range(min(count, left))]
        pool = self._judged_pool()
        best = sorted(self.told, key=lambda told: told[1].rank, reverse=True)[:_PARENTS]
        pool.grow([genotype for genotype, _ in best])
        y = self._values()
        proposals = _PROPOSALS if self.process else _FIRST_PROPOSALS
        trials = []
        for _ in range(count):
            mean, deviation = self._judge(pool, y, proposals)
            worth = self._worth(pool, mean, deviation, y) * pool.chances
            chosen = int(np.argmax(np.where(pool.open(), worth, -np.inf)))
            pool.ask(pool.genotypes[chosen])
            trials.append(Trial(pool.genotypes[chosen]))
            y, proposals = np.append(y, mean[chosen]), 0  # later ones of a batch believe what is expected of this one
        return trials

    def ranking(self) -> list[Genotype]:
        """The networks that were not asked for, best expectation first; none where the space is too large to be listed."""
        if self.admission.space.size > self.admission.listing:
            return []
        pool = self._judged_pool()
        mean, _ = self._judge(pool, self._values(), _PROPOSALS)
        return [pool.genotypes[row] for row in sorted(pool.unasked(), key=lambda row: -mean[row])]

    def _judged_pool(self) -> Pool:
        """The pool, which knows all that was told."""
        self.pool = self.pool or Pool(self.admission, self.rng)
        for genotype, _ in self.told[len(self.pool.asked) :]:
            self.pool.ask(genotype)
        return self.pool

    def _values(self) -> Array:
        """What was told, on the scale of the process [told]."""
        return (clipped if self.front else stretched)(np.array([score.accuracy for _, score in self.told]))

    def _judge(self, pool: Pool, y: Array, proposals: int) -> tuple[Array, Array]:
        """Mean and deviation of every candidate [rows], by a process that knows y [asked]."""
        between = pool.distances()[:, :, pool.asked].astype(np.float64)
        self.process = fit_block_gp(between, y, self.numbers, self.process, proposals)
        return self.process.predict(pool.distances())

    def _first(self) -> Genotype:
        return self.admission.promising(self.rng, self.larger)

    def _worth(self, pool: Pool, mean: Array, deviation: Array, y: Array) -> Array:
        """What each candidate promises within the budget [rows]."""
        if self.front:
            return self._growth(pool, mean, deviation, y)
        if self.acquisition == "ucb":
            upper = mean + self.beta * deviation
            above_least: Array = upper - upper.min()  # not negative, so that a chance below one lessens it
            return above_least
        return improvement(mean, deviation, float(y.max()))

    def _growth(self, pool: Pool, mean: Array, deviation: Array, y: Array) -> Array:
        """Expected hypervolume improvement (Emmerich et al. 2006); with one objective known, improvement summed over costs."""
        cost = pool.metric(self.front)
        steps = [(0.0, float(y.min()) - 1)]  # from this cost on, this is reached
        for at, value in sorted(zip(cost[pool.asked].tolist(), y.tolist(), strict=True)):
            if value > steps[-1][1]:
                steps.append((at, value))
        ends = [at for at, _ in steps[1:]] + [float(cost.max())]
        worth = np.zeros(len(mean))
        for (start, reached), end in zip(steps, ends, strict=True):
            width = end - np.maximum(start, cost)
            there = np.flatnonzero(width > 0)
            worth[there] += width[there] * improvement(mean[there], deviation[there], reached)
        return worth

    def tell(self, trial: Trial, score: Score) -> None:
        self.told.append((trial.genotype, score))


def improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected improvement over `best` of normally distributed values."""
    z = (mean - best) / deviation
    expected: Array = deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
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
