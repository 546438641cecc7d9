"""Space on a hand-made space, where everything can be enumerated."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.ir.arch import Node
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.identity import Identity
from hwnas.ops.sum import Sum
from hwnas.ops.zero import Zero
from hwnas.space import Choice, Keep, Slot, Space
from hwnas.spaces import make_space

IMAGE = TensorSpec((2, 4, 4))
EDGE = (Zero(), Identity(), ConvBn(2), ConvBn(2, 1))


def tiny(count: int = 2, absent: int = 0) -> Space:
    """Three edges of which `count` are kept, then one free choice."""
    edges = tuple(Choice(f"e{i}", ("none", "skip", "conv3", "conv1")) for i in range(3))
    slots = tuple(Slot(f"s{i}", (f"e{i}",), EDGE, ("x",)) for i in range(3))
    free = Slot("free", ("f",), (ConvBn(2), ConvBn(3), ConvBn(4)), ("n",))
    return Space(
        "tiny",
        IMAGE,
        (*edges, Choice("f", ("a", "b", "c"))),
        (*slots, Node("n", Sum(), ("s0", "s1", "s2")), free),
        "free",
        (Keep(("e0", "e1", "e2"), count, absent),),
    )


def members(space: Space) -> set[tuple[int, ...]]:
    """By trying every row of numbers, and the rule of a keep written out once more."""
    found = set()
    for row in product(*(range(len(c.options)) for c in space.choices)):
        if all(
            sum(row[[c.name for c in space.choices].index(n)] != k.absent for n in k.choices) == k.count for k in space.keeps
        ):
            found.add(row)
    return found


@pytest.mark.parametrize(("count", "absent"), [(1, 0), (2, 0), (2, 3), (3, 1)])
def test_size_and_check_against_enumeration(count, absent):
    space = tiny(count, absent)
    inside = members(space)
    assert space.size == len(inside) > 0
    assert sorted(space.genotypes()) == sorted(inside)
    for row in product(*(range(len(c.options)) for c in space.choices)):
        if row in inside:
            assert space.check(row) == row
        else:
            with pytest.raises(UserError):
                space.check(row)


def test_the_published_sizes():
    assert make_space("nasbench201").size == 15625  # Dong and Yang 2020
    # Liu et al. 2019, section 3.1.1: (2+1+...) gives 7^2 * C(k, 2) for each node, (prod C(k,2) * 7^2)^2 for two cells
    assert make_space("darts(channels=2)").size == (1 * 3 * 6 * 10 * 49**4) ** 2
    assert make_space("darts(channels=2, cells=2)").size == 1 * 3 * 6 * 10 * 49**4


def test_sampling_is_uniform():
    space = tiny()
    inside = members(space)
    rng = random.Random(0)
    count = 81 * 200
    seen = Counter(space.sample(rng) for _ in range(count))
    assert set(seen) == inside
    mean = count / len(inside)
    chi2 = sum((n - mean) ** 2 / mean for n in seen.values())
    freedom = len(inside) - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_every_neighbour_is_reached_and_nothing_else():
    space = tiny()
    rng = random.Random(0)
    genotype = (0, 1, 2, 0)
    reachable = set()
    for row in members(space):
        difference = [i for i in range(4) if row[i] != genotype[i]]
        if len(difference) == 1:
            reachable.add(row)
        elif len(difference) == 2 and row[0] != 0 and row[3] == 0:
            reachable.add(row)  # the absent edge takes the place of one that was present
    assert {space.mutate(genotype, rng) for _ in range(3000)} <= reachable
    assert {space.mutate(genotype, rng) for _ in range(3000)} == reachable


@pytest.mark.parametrize(("count", "absent"), [(1, 0), (2, 3), (3, 1)])
def test_mutation_never_leaves_the_space(count, absent):
    space = tiny(count, absent)
    rng = random.Random(0)
    genotype = space.sample(rng)
    for _ in range(300):
        genotype = space.mutate(genotype, rng)
        assert space.check(genotype) == genotype


def test_mutation_of_a_space_without_a_choice():
    space = Space("one", IMAGE, (Choice("c", ("a",)),), (Slot("s", ("c",), (ConvBn(2),), ("x",)),), "s")
    assert space.mutate((0,), random.Random(0)) == (0,)
    assert space.size == 1


@given(st.integers(0, 10**6))
def test_crossover_takes_a_keep_from_one_parent(seed):
    space = tiny()
    rng = random.Random(seed)
    a, b = space.sample(rng), space.sample(rng)
    child = space.crossover(a, b, rng)
    assert space.check(child) == child
    assert child[:3] in (a[:3], b[:3])
    assert child[3] in (a[3], b[3])


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=3, max_size=3),
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_from_scores_against_brute_force(edges, free):
    """The two strongest edges by their best present option, earlier ones first where they tie; the free choice by its best."""
    space = tiny()
    found = space.from_scores([*edges, free])
    assert free[found[3]] == max(free)
    strength = [max(row[1:]) for row in edges]
    kept = [i for i in range(3) if found[i] != 0]
    assert len(kept) == 2
    assert sum(strength[i] for i in kept) == max(strength[i] + strength[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    for i in kept:
        assert edges[i][found[i]] == strength[i]


def test_options_of_several_choices_are_ordered_last_fastest():
    options = tuple(ConvBn(2 * w, k) for w in (1, 2) for k in (1, 3, 5))
    space = Space(
        "two", IMAGE, (Choice("w", ("2", "4")), Choice("k", ("1", "3", "5"))), (Slot("s", ("w", "k"), options, ("x",)),), "s"
    )
    for w, k in product(range(2), range(3)):
        assert space.decode((w, k)).nodes[0].op == ConvBn((2, 4)[w], (1, 3, 5)[k])
        assert space.describe((w, k)) == {"w": ("2", "4")[w], "k": ("1", "3", "5")[k]}
    assert space.one_hot((1, 2)) == [[0.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choice("c", ()),
        lambda: Space("s", IMAGE, (Choice("c", ("a",)), Choice("c", ("b",))), (), "x"),
        lambda: Space("s", IMAGE, (Choice("c", ("a",)),), (Slot("n", ("d",), (ConvBn(2),), ("x",)),), "n"),
        lambda: Space("s", IMAGE, (Choice("c", ("a", "b")),), (Slot("n", ("c",), (ConvBn(2),), ("x",)),), "n"),
        lambda: tiny(count=0),
        lambda: tiny(count=4),
        lambda: Space("s", IMAGE, (Choice("c", ("a",)),), (), "x", (Keep(("d",), 0, 0),)),
    ],
)
def test_a_space_is_checked_at_birth(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("value", [0.5, 1.0 - 1e-9])
def test_a_fraction_is_no_option(value):
    with pytest.raises(UserError):
        tiny().check((0, 1, 2, value))


@pytest.mark.parametrize(
    "text",
    [
        "nosuch",
        "",
        "mobilenet(",
        "mobilenet(3)",
        "mobilenet(clases=3)",
        "mobilenet(classes=x)",
        "mobilenet(**{})",
        "__import__('os')",
        "mobilenet(stages=())",
        "mobilenet(stages=((24, 2),))",
        "mobilenet(stages=3)",
        "mobilenet(kernels=(4,))",
        "mobilenet(kernels=3)",
        "mobilenet(input=())",
        "darts(cells=0)",
        "darts(channels=3)",
        "chain(kind='foo')",
        "chain(layers=0)",
        "chain(widths=())",
        "chain(input=())",
        "os.path",
        "hwnas.nosuch",
        "nasbench201(cells=0)",
        "mobilenet(classes=2 + 2)",
    ],
)
def test_unknown_spaces_and_arguments_are_refused_in_one_line(text):
    with pytest.raises(UserError) as caught:
        make_space(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "nasbench201(channels=0)",
        "nasbench201(channels='a')",
        "chain(classes=0)",
        "mobilenet(act='foo')",
        "mobilenet(width=-1)",
        "mobilenet(kernels=(-1,))",
        "mobilenet(expansions=(0,))",
        "darts(classes=0)",
    ],
)
def test_values_that_no_network_has_are_refused(text):
    """When the space is made, or at the latest when its first network is."""
    with pytest.raises(UserError):
        make_space(text).decode(make_space(text).sample(random.Random(0)))


def test_arguments_in_the_text_win_over_defaults():
    space = make_space("nasbench201(classes=7, cells=1)", classes=3, channels=4)
    assert space.fingerprint == make_space("nasbench201(classes=7, cells=1, channels=4)").fingerprint
