"""The controller: gradients against finite differences, and policies that learn what pays."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.search.admission import Admission, Traits
from hwnas.search.controller import Controller
from hwnas.search.strategy import Score, Trial, make_strategy
from hwnas.spaces import make_space

SPACE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")
FREE = Admission(SPACE, lambda g: 0.0, (0,) * 6)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_the_gradient_against_finite_differences(entropy):
    controller = Controller(FREE, 3, hidden=4)
    genotype, advantage = (1, 4, 0, 2, 3, 3), 0.7
    gradients = [np.zeros_like(p) for p in controller.parameters]
    controller._accumulate(gradients, genotype, advantage, entropy)

    def objective():
        # Of each choice on its own, given what stands before it: the entropy of the written prefix counts as fixed.
        total = 0.0
        for (_, p), option in zip(controller._read(genotype), genotype, strict=True):
            total += advantage * np.log(p[option]) - entropy * p @ np.log(p)
        return total

    rng = np.random.default_rng(0)
    for parameter, gradient in zip(controller.parameters, gradients, strict=True):
        for _ in range(4):
            at = tuple(rng.integers(n) for n in parameter.shape)
            kept = parameter[at]
            values = []
            for step in (1e-5, -1e-5):
                parameter[at] = kept + step
                values.append(objective())
            parameter[at] = kept
            assert gradient[at] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)


def test_what_is_written_follows_the_probabilities():
    controller = Controller(FREE, 0)
    for _ in range(40):
        controller.learn([(3, 3, 3, 3, 3, 3)], [1.0], 0.0)
    likely = np.exp(controller.log_probability((3,) * 6))
    drawn = [controller.write(random.Random(0)) for _ in range(600)]
    assert likely > 0.2
    assert drawn.count((3,) * 6) / 600 == pytest.approx(likely, abs=4 * (likely * (1 - likely) / 600) ** 0.5 + 1e-3)


@pytest.mark.parametrize("text", ["reinforce", "qlearning(explore=40)", "hybrid", "local", "nsga2", "predictor(members=20)"])
def test_better_than_chance_on_an_additive_landscape(text):
    """The mean of trials 70 to 100: those that learnt write better ones than chance, over landscapes and seeds."""

    def late(text, seed):
        rng = random.Random(100 + seed)
        worth = [[rng.gauss(0, 1) for _ in c.options] for c in SPACE.choices]
        strategy, found = make_strategy(text, FREE, seed), []
        while len(found) < 100:
            for trial in strategy.ask(8):
                found.append(sum(row[o] for row, o in zip(worth, trial.genotype, strict=True)))
                strategy.tell(trial, Score(found[-1] / 20 + 0.5, 0.0))
        return statistics.fmean(found[70:100])

    gains = [late(text, s) - late("random", s) for s in range(6)]
    assert statistics.fmean(gains) > 3 * statistics.stdev(gains) / 6**0.5


def test_the_reward_of_mnasnet_prefers_the_faster_of_two():
    known = Admission(SPACE, lambda g: 0.0, (0,) * 6, lambda g: Traits(str(g), {"latency_ms": 1.0 + g[0]}))
    strategy = make_strategy("reinforce(target_ms=2.0, exponent=-0.5)", known, 0)
    assert strategy._reward((0,) * 6, Score(0.8, 0)) == pytest.approx(0.8 * (1 / 2) ** -0.5)
    assert strategy._reward((3,) * 6, Score(0.8, 0)) == pytest.approx(0.8 * (4 / 2) ** -0.5)
    with pytest.raises(UserError, match="where a latency is predicted"):
        make_strategy("reinforce(target_ms=2.0)", FREE, 0)


def test_a_front_is_sought_over_all_budgets_at_once():
    """Accuracy grows with cost: the front's hypervolume after 40 trials, against chance."""
    known = Admission(SPACE, lambda g: 0.0, (0,) * 6, lambda g: Traits(str(g), {"latency_ms": 1.0 + sum(g)}))

    def reached(text, seed):
        strategy, best = make_strategy(text, known, seed), {}
        for _ in range(40):
            (trial,) = strategy.ask()
            accuracy = (sum(trial.genotype) / 24) ** 0.5 - 0.05 * trial.genotype[2]
            strategy.tell(trial, Score(accuracy, 0.0))
            for cost in range(sum(trial.genotype), 25):
                best[cost] = max(best.get(cost, 0.0), accuracy)
        return sum(best.values())

    for seed in range(3):
        assert reached("bayesian(initial=8, front='latency_ms')", seed) > reached("random", seed)
    with pytest.raises(UserError, match="front names a metric"):
        make_strategy("bayesian(front='nosuch')", known, 0)
    assert Trial((0,) * 6).fidelity == 1.0
