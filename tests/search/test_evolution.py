"""Regularized evolution: who is a parent, who dies, and whether it is worth more than chance."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from hwnas.errors import UserError
from hwnas.search.admission import Admission
from hwnas.search.genetic import mutate, select
from hwnas.search.strategies.evolution import Strategy as Evolution
from hwnas.search.strategy import Score, Trial, make_strategy
from hwnas.space import Genotype
from hwnas.spaces import make_space

SPACE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")
FREE = Admission(SPACE, lambda g: 0.0, (0,) * 6)


def distance(a: Genotype, b: Genotype) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_better_than_chance_on_an_additive_landscape():
    """The best of 150 evaluations, mean over 20 seeds of landscape and search, by more than five standard errors."""
    space = make_space("darts(input=(1,8,8), classes=3, channels=2, cells=2)")

    def best(text: str, seed: int) -> float:
        rng = random.Random(1000 + seed)
        worth = [[rng.gauss(0, 1) for _ in c.options] for c in space.choices]
        fallback = space.sample(random.Random(0))
        strategy = make_strategy(text, Admission(space, lambda g: 0.0, fallback), seed)
        found = []
        for _ in range(150):
            genotype = strategy.ask()[0].genotype
            found.append(sum(row[o] for row, o in zip(worth, genotype, strict=True)))
            strategy.tell(Trial(genotype), Score(found[-1], 0.0))
        return max(found)

    gains = [best("evolution(population=20, sample=6)", s) - best("random", s) for s in range(20)]
    assert statistics.mean(gains) > 5 * statistics.stdev(gains) / 20**0.5


def test_better_than_chance_within_a_budget():
    space = make_space("darts(input=(1,8,8), classes=3, channels=2, cells=2)")

    def best(text: str, seed: int) -> float:
        rng = random.Random(2000 + seed)
        worth = [[rng.gauss(0, 1) for _ in c.options] for c in space.choices]
        price = [[rng.random() for _ in c.options] for c in space.choices]

        def violation(genotype: Genotype) -> float:
            return max(0.0, sum(row[o] for row, o in zip(price, genotype, strict=True)) / (0.45 * len(price)) - 1)

        fallback = min((space.sample(rng) for _ in range(2000)), key=violation)
        assert violation(fallback) == 0
        strategy = make_strategy(text, Admission(space, violation, fallback), seed)
        found = []
        for _ in range(120):
            genotype = strategy.ask()[0].genotype
            found.append(sum(row[o] for row, o in zip(worth, genotype, strict=True)))
            strategy.tell(Trial(genotype), Score(found[-1], 0.0))
        return max(found)

    gains = [best("evolution(population=16, sample=5)", s) - best("random", s) for s in range(20)]
    assert statistics.mean(gains) > 5 * statistics.stdev(gains) / 20**0.5


def test_the_oldest_dies_whatever_its_worth():
    """With tournaments of everyone, each child is a neighbour of the best of the last P that were told, and of no one older."""
    strategy = Evolution(FREE, 0, population=4, sample=4, crossover=0.0)
    told: list[tuple[Genotype, float]] = []
    for number in range(60):
        genotype = strategy.ask()[0].genotype
        if number >= 4:
            parent = max(told[-4:], key=lambda t: t[1])[0]
            assert distance(genotype, parent) == 1
        worth = 10.0 if number == 3 else random.Random(number).random()  # one outstanding network, early
        told.append((genotype, worth))
        strategy.tell(Trial(genotype), Score(worth, 0.0))
    elite = told[3][0]
    assert any(distance(g, elite) > 1 for g, _ in told[8:])


def test_equal_accuracy_is_decided_by_the_loss():
    assert Score(0.5, 1.0).rank > Score(0.5, 2.0).rank > Score(0.4, 0.1).rank
    strategy = Evolution(FREE, 0, population=3, sample=3, crossover=0.0)
    told = {}
    for loss in (2.0, 1.0, 3.0):
        genotype = strategy.ask()[0].genotype
        told[loss] = genotype
        strategy.tell(Trial(genotype), Score(0.5, loss))
    assert distance(strategy.ask()[0].genotype, told[1.0]) == 1


def test_a_tournament_of_one_lets_anyone_be_a_parent():
    strategy = Evolution(FREE, 0, population=6, sample=1, crossover=0.0)
    first = [strategy.ask()[0].genotype for _ in range(1)]
    strategy.tell(Trial(first[0]), Score(1.0, 0.0))
    for _ in range(5):
        first.append(strategy.ask()[0].genotype)
        strategy.tell(Trial(first[-1]), Score(0.0, 1.0))
    children = [strategy.ask()[0].genotype for _ in range(200)]  # asked again without a tell: the population stays
    assert all(min(distance(c, p) for p in first) == 1 for c in children)
    alone = [p for p in first[1:] if any(distance(c, p) == 1 and distance(c, first[0]) > 1 for c in children)]
    assert len(alone) >= 4


def test_crossover_children_mix_two_parents_and_stay_within_the_budget():
    rng = random.Random(0)
    price = [[rng.random() for _ in c.options] for c in SPACE.choices]

    def violation(genotype: Genotype) -> float:
        return max(0.0, sum(row[o] for row, o in zip(price, genotype, strict=True)) / 2.5 - 1)

    fallback = min((SPACE.sample(rng) for _ in range(500)), key=violation)
    strategy = Evolution(Admission(SPACE, violation, fallback), 1, population=5, sample=2, crossover=1.0)
    parents = []
    for _ in range(5):
        parents.append(strategy.ask()[0].genotype)
        strategy.tell(Trial(parents[-1]), Score(rng.random(), 0.0))
    children = [strategy.ask()[0].genotype for _ in range(100)]
    assert all(violation(c) == 0 for c in children)
    assert any(min(distance(c, p) for p in parents) > 1 for c in children)  # more than a mutation of either


def test_the_elite_never_dies():
    strategy = Evolution(FREE, 0, population=4, sample=4, crossover=0.0, elite=1)
    elite = None
    for number in range(40):
        genotype = strategy.ask()[0].genotype
        if number == 3:
            elite = genotype
        if number > 3:
            assert distance(genotype, elite) == 1
        if number == 25:
            break  # 24 neighbours, each new
        strategy.tell(Trial(genotype), Score(10.0 if number == 3 else random.Random(number).random(), 0.0))


def test_roulette_favours_the_better_and_leaves_none_out():
    population = [((i,), Score(i / 10, 0.0)) for i in range(4)]
    rng = random.Random(0)
    drawn = [select(population, "roulette", 0, rng)[0] for _ in range(4000)]
    shares = [drawn.count(i) / 4000 for i in range(4)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)  # in proportion to the rank


@pytest.mark.parametrize(("kind", "changes"), [("one_point", 1), ("two_point", 2)])
def test_points_cut_a_genotype_into_runs_of_one_parent(kind, changes):
    a, b, rng = (0,) * 6, (1,) * 6, random.Random(0)
    children = [SPACE.crossover(a, b, rng, kind) for _ in range(300)]
    assert {sum(x != y for x, y in pairwise(c)) for c in children} == {changes}
    assert all(c[0] == 0 for c in children)
    assert len(set(children)) == {1: 5, 2: 10}[changes]  # every place of the cuts


def test_a_mutation_rate_changes_more_than_one_choice():
    rng = random.Random(0)
    start = (0,) * 6
    assert {distance(mutate(FREE, start, 0.0, rng), start) for _ in range(50)} == {1}
    assert max(distance(mutate(FREE, start, 0.9, rng), start) for _ in range(50)) >= 4


@pytest.mark.parametrize(
    "arguments",
    [
        "population=0", "sample=0", "sample=33", "population=4, sample=5", "crossover=-0.1", "crossover=1.1", "nosuch=1",
        "population='many'", "population=4.5, sample=2", "population=8, sample=2.5", "crossover='x'", "population=None",
        "kind='three_point'", "selection='lottery'", "mutation=2", "elite=32",
    ],
)  # fmt: skip
def test_arguments_that_make_no_evolution_are_refused_at_once(arguments):
    with pytest.raises(UserError) as caught:
        make_strategy(f"evolution({arguments})", FREE, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nosuch", "", "random(population=3)", "os.path", "evolution(3)", "json"])
def test_unknown_strategies_are_refused(text):
    with pytest.raises(UserError) as caught:
        make_strategy(text, FREE, 0)
    assert "\n" not in str(caught.value)


def test_an_unknown_strategy_is_told_the_known_ones():
    with pytest.raises(UserError, match=r"did you mean evolution.*known: auto, bayesian, evolution"):
        make_strategy("evolutoin", FREE, 0)
