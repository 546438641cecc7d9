"""What every file in hwnas/search/strategies must keep. A new strategy is tested by existing."""

from __future__ import annotations

import random
from functools import cache

import pytest
from cases import build_space, space_arguments

from hwnas.plugins import known
from hwnas.search.admission import Admission
from hwnas.search.strategy import Score, Strategy, Trial, make_strategy
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space

NAMES = known("hwnas.search.strategies")
SMALL = {  # so that a short search reaches every branch
    "auto": "auto(judged=9)",
    "bayesian": "bayesian(initial=4)",
    "evolution": "evolution(population=5, sample=2)",
    "hybrid": "hybrid(batch=4, population=5, sample=2)",
    "local": "local(patience=3)",
    "nsga2": "nsga2(population=5)",
    "predictor": "predictor(initial=4, batch=3, members=5)",
    "qlearning": "qlearning(explore=10)",
    "reinforce": "reinforce(batch=4)",
}
TEXTS = [SMALL.get(name, name) for name in NAMES]
VARIANTS = [
    "evolution(population=5, sample=2, selection='roulette', kind='two_point', crossover=1.0, elite=2, mutation=0.3)",
    "evolution(population=5, sample=2, kind='one_point', crossover=1.0)",
    "bayesian(initial=4, acquisition='ucb')",
    "predictor(initial=4, batch=9, members=1, model='mlp')",
]
SPACES = [make_space("mobilenet(input=(1,8,8), classes=3, stages=((8,2,2),), stem=8, first=8, head=16, kernels=(3,5), "
                     "expansions=(3,), depths=(1,2), widths=(0.5,1.0,2.0))"),
          *(build_space(name, space_arguments(name)[0]) for name in ("nasbench201", "darts", "chain"))]  # fmt: skip


@cache
def price(choice: str, option: int) -> float:
    return random.Random(f"{choice} {option}").random()


def load_of(space: Space, genotype: Genotype) -> float:
    """An invented cost between 0 and 1: every option of every choice has a price of its own."""
    prices = [price(c.name, v) for c, v in zip(space.choices, genotype, strict=True)]
    return sum(prices) / len(prices)


def worth(genotype: Genotype) -> Score:
    accuracy = random.Random(str(genotype)).random()
    return Score(accuracy, 1 - accuracy)


@cache
def admission_of(space: Space) -> Admission:
    """Admits about a tenth of the space; it remembers nothing, so that all tests may share it."""
    rng = random.Random(0)
    drawn = sorted((space.sample(rng) for _ in range(200)), key=lambda g: load_of(space, g))
    limit = load_of(space, drawn[20])
    return Admission(space, lambda g: max(0.0, load_of(space, g) / limit - 1), drawn[0])


def asked(strategy: Strategy, count: int) -> list[Genotype]:
    found = []
    for _ in range(count):
        (trial,) = strategy.ask()
        found.append(trial.genotype)
        strategy.tell(trial, worth(trial.genotype))
    return found


CASES = [(space, text) for space in SPACES for text in TEXTS] + [(SPACES[1], text) for text in VARIANTS]


@pytest.mark.parametrize(("space", "text"), CASES, ids=[f"{space.name}-{text}" for space, text in CASES])
class TestEveryStrategy:
    def test_asks_only_admitted_genotypes_of_the_space(self, text, space):
        admission = admission_of(space)
        found = asked(make_strategy(text, admission, 0), 40)
        assert all(space.check(g) == g for g in found)
        assert [admission.violation(g) for g in found] == [0.0] * 40
        assert len(set(found)) > 1

    def test_is_decided_by_its_seed(self, text, space):
        runs = [asked(make_strategy(text, admission_of(space), seed), 25) for seed in (3, 3, 4)]
        assert runs[0] == runs[1] != runs[2]

    def test_draws_from_nothing_but_its_own_numbers(self, text, space):
        random.seed(1)
        before = asked(make_strategy(text, admission_of(space), 3), 25)
        random.seed(2)
        state = random.getstate()
        assert asked(make_strategy(text, admission_of(space), 3), 25) == before
        assert random.getstate() == state

    def test_replaying_the_tells_reproduces_the_asks(self, text, space):
        whole = asked(make_strategy(text, admission_of(space), 7), 24)
        for stop in (1, 5, 17):
            again = make_strategy(text, admission_of(space), 7)
            for genotype in whole[:stop]:
                (trial,) = again.ask()
                assert trial.genotype == genotype
                again.tell(trial, worth(genotype))
            assert asked(again, 24 - stop) == whole[stop:]

    def test_a_batch_holds_at_most_so_many_and_is_replayed(self, text, space):
        """What a batch holds depends on what was told before it, not on who evaluates it."""
        count = 3

        def batches(strategy: Strategy, number: int) -> list[list[Trial]]:
            found = []
            for _ in range(number):
                found.append(strategy.ask(count))
                for trial in found[-1]:
                    strategy.tell(trial, worth(trial.genotype))
            return found

        admission = admission_of(space)
        first = batches(make_strategy(text, admission, 1), 8)
        assert first == batches(make_strategy(text, admission, 1), 8)
        assert all(1 <= len(batch) <= count for batch in first)
        assert any(len(batch) > 1 for batch in first)
        assert all(admission.admits(t.genotype) and 0 < t.fidelity <= 1 for batch in first for t in batch)

    @pytest.mark.parametrize("slope", [0.0, 1.0])
    def test_ends_where_one_genotype_alone_is_admitted(self, text, space, slope):
        """With and without a way down to it: on a plateau nothing but the fallback is known."""
        only = space.sample(random.Random(5))

        def violation(genotype: Genotype) -> float:
            distance = sum(a != b for a, b in zip(genotype, only, strict=True))
            return 0.0 if distance == 0 else 1 + slope * distance

        assert set(asked(make_strategy(text, Admission(space, violation, only), 0), 8)) == {only}


@pytest.mark.parametrize("text", TEXTS + VARIANTS)
def test_ends_in_a_space_of_one_network(text):
    space = make_space("chain(input=(4,), classes=2, kind='dense', layers=1, widths=(2,), activations=('relu',))")
    assert space.size == 1
    assert asked(make_strategy(text, Admission(space, lambda g: 0.0, (0, 0, 0)), 0), 8) == [(0, 0, 0)] * 8
