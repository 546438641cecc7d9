"""Reinforcement learning: a controller writes genotypes and climbs the policy gradient (Williams 1992; Zoph and Le 2017)."""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.search import strategy
from hwnas.search.admission import Admission
from hwnas.search.budget import LATENCY
from hwnas.search.controller import Controller
from hwnas.search.strategy import Score, Trial
from hwnas.space import Genotype


class Strategy(strategy.Strategy):
    """batch: trials of one step of the gradient; replay: earlier ones, drawn from the better half, that join it.

    The baseline is a moving average with weight `decay`. With `target_ms` the reward is that of MnasNet (Tan et al. 2019):
    accuracy * (latency / target)^exponent.
    """

    def __init__(
        self, admission: Admission, seed: int, batch: int = 8, rate: float = 0.02, entropy: float = 0.01, decay: float = 0.8,
        replay: int = 8, target_ms: float = 0.0, exponent: float = -0.07,
    ) -> None:  # fmt: skip
        super().__init__(admission, seed)
        if type(batch) is not int or batch < 1 or type(replay) is not int or replay < 0 or not 0 <= decay < 1:
            raise UserError("reinforce needs batch >= 1, replay >= 0 and decay from 0 to below 1", got=(batch, replay, decay))
        if target_ms < 0 or (target_ms and LATENCY not in admission.traits(admission.fallback).metrics):
            raise UserError("target_ms is positive, and of use where a latency is predicted", got=target_ms)
        self.batch, self.entropy, self.decay, self.replay = batch, entropy, decay, replay
        self.target_ms, self.exponent = target_ms, exponent
        self.controller = Controller(admission, seed, rate=rate)
        self.told: list[tuple[Genotype, float]] = []  # with rewards
        self.baseline = 0.0
        self.spread = 0.0  # a moving average of the distance from the baseline: the unit of advantages

    def ask(self, count: int = 1) -> list[Trial]:
        left = self.batch - len(self.told) % self.batch
        return [Trial(self.fresh(lambda: self.controller.write(self.rng))) for _ in range(min(count, left))]

    def tell(self, trial: Trial, score: Score) -> None:
        reward = self._reward(trial.genotype, score)
        if not self.told:
            self.baseline = reward
        self.told.append((trial.genotype, reward))
        if len(self.told) % self.batch == 0:
            self._learn()

    def _learn(self) -> None:
        new = self.told[-self.batch :]
        better = sorted(self.told, key=lambda t: t[1])[len(self.told) // 2 :]
        seen = [*new, *self.rng.sample(better, min(self.replay, len(better)))]
        for _, reward in new:
            self.spread += (1 - self.decay) * (abs(reward - self.baseline) - self.spread)
            self.baseline += (1 - self.decay) * (reward - self.baseline)
        advantages = [max(-2.0, min(2.0, (r - self.baseline) / max(self.spread, 1e-9))) for _, r in seen]
        self.controller.learn([g for g, _ in seen], advantages, self.entropy)

    def _reward(self, genotype: Genotype, score: Score) -> float:
        if not self.target_ms:
            return score.accuracy
        latency_ms = self.admission.traits(genotype).metrics[LATENCY]
        return float(score.accuracy * (latency_ms / self.target_ms) ** self.exponent)
