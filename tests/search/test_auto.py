"""The default strategy: what it makes of an evaluation's price and of the space's size, and what it takes for promising."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest

from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.lower.cost import cost
from hwnas.search.admission import Admission, Traits
from hwnas.search.strategies.auto import worth_judging
from hwnas.search.strategy import Score, make_strategy
from hwnas.search.warm import WarmAdmission
from hwnas.spaces import make_space

LISTED = make_space("chain(kind='dense', input=(4,), classes=3, layers=2, widths=(4,8,16), activations=('relu','tanh'))")
LARGE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")


@cache
def traits(space):
    @cache
    def of(genotype):
        arch = simplify(space.decode(genotype))
        return Traits(arch.key, {"macs": float(cost(arch).macs), "params": 1.0})

    return of


def free(space, **arguments):
    return Admission(space, lambda g: 0.0, (0,) * len(space.choices), traits(space), **arguments)


def worth(genotype):
    return Score(sum(genotype) / 20, 0.0)


def asked(strategy, count, batch=1):
    found = []
    while len(found) < count:
        for trial in strategy.ask(batch):
            found.append(trial.genotype)
            strategy.tell(trial, worth(trial.genotype))
    return found


def test_the_dearer_an_evaluation_the_longer_it_judges():
    found = [worth_judging(price) for price in (0.0, 1e-5, 7e-3, 1e-2, 2e-2, 1.0, float("inf"))]
    assert found == sorted(found)
    assert found[0] >= 2
    assert found[0] < found[2] < found[3] < found[-1]
    lengths = []
    for price in (0.0, float("inf")):
        strategy = make_strategy("auto", free(LARGE, price=price), 0)
        lengths.append(strategy.judged)
    assert lengths == [found[0], found[-1]]
    assert make_strategy("auto(judged=7)", free(LARGE, price=0.0), 0).judged == 7
    for judged in (1, -3, 2.5):
        with pytest.raises(UserError):
            make_strategy(f"auto(judged={judged})", free(LARGE), 0)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_space_that_can_be_listed_is_looked_through_each_network_once(batch):
    of = traits(LISTED)
    networks = {of(g).key for g in LISTED.genotypes()}
    assert LISTED.size <= 2000
    found = [of(g).key for g in asked(make_strategy("auto(judged=20)", free(LISTED), 0), len(networks), batch)]
    assert set(found[: len(networks)]) == networks
    assert max(Counter(found[: len(networks)]).values()) == 1


def test_what_is_left_of_it_comes_in_the_order_of_expectation():
    of = traits(LISTED)
    count = len({of(g).key for g in LISTED.genotypes()})
    rest = [worth(g).accuracy for g in asked(make_strategy("auto(judged=20)", free(LISTED), 0), count)[20:]]
    third = len(rest) // 3
    assert sum(rest[:third]) / third > sum(rest[-third:]) / third + 0.05


def test_in_a_larger_space_evolution_goes_on_from_the_best():
    strategy = make_strategy("auto(judged=20)", free(LARGE, listing=100), 0)
    first = asked(strategy, 20)
    best = sorted(first, key=lambda g: worth(g).rank)[-1]
    assert strategy.rest == []
    later = asked(strategy, 80)
    assert best in [g for g, _ in strategy.evolution.population] or max(map(sum, later)) >= sum(best)
    assert sum(map(sum, later[-40:])) / 40 > sum(map(sum, first[:10])) / 10


def test_promising_is_the_largest_of_so_many_within_the_budget():
    of = traits(LARGE)
    admission = Admission(LARGE, lambda g: float(g[0] == 3), (0,) * 6, of)
    rng = random.Random(1)
    drawn = [[admission.sample(rng) for _ in range(5)] for _ in range(10)]
    rng = random.Random(1)
    for samples in drawn:
        found = admission.promising(rng, 5)
        assert found in samples
        assert admission.admits(found)
        assert of(found).metrics["macs"] == max(of(g).metrics["macs"] for g in samples)
    plain = Admission(LARGE, lambda g: 0.0, (0,) * 6)  # nothing is known
    assert [plain.promising(random.Random(3), 5)] == [plain.sample(random.Random(3))]


def test_a_warm_start_comes_before_what_is_promising():
    prior = [(0, 1, 2, 3, 4, 0), (4,) * 6, (1,) * 6]
    warm = WarmAdmission(LARGE, lambda g: 0.0, (0,) * 6, prior, traits(LARGE))
    assert asked(make_strategy("auto", warm, 0), 3) == prior


def test_a_front_starts_with_networks_of_every_size():
    of = traits(LARGE)
    sizes = {
        text: sum(of(g).metrics["macs"] for seed in range(20) for g in asked(make_strategy(text, free(LARGE), seed), 5))
        for text in ("bayesian", "bayesian(larger=1)", "bayesian(front='macs')", "bayesian(front='macs', larger=8)")
    }
    assert sizes["bayesian"] > 1.2 * sizes["bayesian(larger=1)"]
    assert sizes["bayesian(front='macs')"] == sizes["bayesian(front='macs', larger=8)"] == sizes["bayesian(larger=1)"]
    for text in ("bayesian(larger=0)", "bayesian(larger=1.5)", "bayesian(front='x')", "bayesian(initial=2.5)"):
        with pytest.raises(UserError):
            make_strategy(text, free(LARGE), 0)
