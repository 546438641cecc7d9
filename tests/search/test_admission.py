"""Admission and the smallest genotype, against enumeration of small spaces."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest

from hwnas.errors import UserError
from hwnas.lower.cost import cost
from hwnas.search.admission import Admission, descend, smallest
from hwnas.space import Space
from hwnas.spaces import make_space

MOBILE = make_space(
    "mobilenet(input=(1,8,8), classes=3, stages=((8,2,2),(16,2,1)), stem=8, first=8, head=16, kernels=(3,5), expansions=(3,), "
    "depths=(1,2), widths=(0.5,1.0,2.0))"
)
CHAIN = make_space("chain(input=(1,8,8), classes=3, layers=2, widths=(2,4), activations=('relu','tanh'))")
CELL = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")


def members(space: Space) -> list[tuple[int, ...]]:
    return [g for g in product(*(range(len(c.options)) for c in space.choices)) if _is_one(space, g)]


def _is_one(space, genotype):
    try:
        space.check(genotype)
    except UserError:
        return False
    return True


def macs(space: Space):
    known: dict[tuple[int, ...], float] = {}

    def value(genotype):
        if genotype not in known:
            known[genotype] = float(cost(space.decode(genotype)).macs)
        return known[genotype]

    return value


@pytest.mark.parametrize("space", [MOBILE, CHAIN], ids=lambda s: s.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_smallest_and_largest_are_those_of_the_enumeration(space, sign):
    value = macs(space)
    assert space.size == len(members(space)) < 5000
    best = min(sign * value(g) for g in members(space))
    for seed in range(3):
        assert sign * value(smallest(space, lambda g: sign * value(g), seed)) == best


@pytest.mark.parametrize("seed", range(10))
def test_smallest_of_an_additive_value_where_a_keep_binds(seed):
    """DARTS: every node keeps two edges. The optimum in closed form: the two cheapest edges of every node."""
    space = make_space("darts(input=(1,8,8), classes=3, channels=2, cells=2)")
    rng = random.Random(seed)
    price = [[rng.random() for _ in c.options] for c in space.choices]
    index = {c.name: i for i, c in enumerate(space.choices)}
    best = 0.0
    for keep in space.keeps:
        rows = [price[index[c]] for c in keep.choices]
        gain = sorted(min(v for o, v in enumerate(r) if o != keep.absent) - r[keep.absent] for r in rows)[: keep.count]
        best += sum(r[keep.absent] for r in rows) + sum(gain)
    found = smallest(space, lambda g: sum(price[i][o] for i, o in enumerate(g)), seed=0)
    assert space.check(found) == found
    assert sum(price[i][o] for i, o in enumerate(found)) == pytest.approx(best, rel=1e-12)


def test_smallest_is_deterministic():
    assert len({smallest(CELL, macs(CELL), 3) for _ in range(3)}) == 1


def test_descend_never_goes_up_and_stops_at_the_goal():
    value = macs(MOBILE)
    for seed in range(20):
        rng = random.Random(seed)
        start = MOBILE.sample(rng)
        steps = [start]

        def watched(genotype, steps=steps):
            steps.append(genotype)
            return value(genotype)

        goal = sorted(map(value, members(MOBILE)))[400]
        found = descend(MOBILE, start, watched, rng, goal)
        assert value(found) <= value(start)
        assert value(found) <= goal
        reached = [value(g) <= goal for g in steps[1:]]
        assert not any(reached[:-1])  # it went no further than it had to


@pytest.mark.parametrize("space", [MOBILE, CELL], ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_samples_and_mutations_are_within_the_budget(space, share):
    value = macs(space)
    rng = random.Random(0)
    limit = sorted(value(space.sample(rng)) for _ in range(1000))[int(1000 * share)]
    admission = Admission(space, lambda g: max(0.0, value(g) / limit - 1), smallest(space, value))
    genotype = admission.sample(rng)
    for _ in range(60):
        assert value(genotype) <= limit
        assert value(admission.sample(rng)) <= limit
        child = admission.mutate(genotype, rng)
        assert space.check(child) == child
        genotype = child


def test_a_mutation_is_a_neighbour_while_there_is_one():
    value = macs(CELL)
    rng = random.Random(0)
    limit = sorted(value(CELL.sample(rng)) for _ in range(300))[150]
    admission = Admission(CELL, lambda g: max(0.0, value(g) / limit - 1), smallest(CELL, value))
    for _ in range(50):
        parent = admission.sample(rng)
        assert sum(a != b for a, b in zip(parent, admission.mutate(parent, rng), strict=True)) == 1


def test_sampling_is_uniform_over_what_a_lenient_budget_admits():
    value = macs(CHAIN)
    inside = [g for g in members(CHAIN) if value(g) <= sorted(map(value, members(CHAIN)))[CHAIN.size // 2]]
    limit = max(map(value, inside))
    inside = [g for g in members(CHAIN) if value(g) <= limit]
    admission = Admission(CHAIN, lambda g: max(0.0, value(g) / limit - 1), smallest(CHAIN, value))
    rng = random.Random(0)
    count = 40 * len(inside)
    seen = Counter(admission.sample(rng) for _ in range(count))
    assert set(seen) == set(inside)
    chi2 = sum((seen[g] - 40) ** 2 / 40 for g in inside)
    freedom = len(inside) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5
