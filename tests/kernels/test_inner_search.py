"""The native inner search against plain numpy: scores, ranks, selection, exact fronts; and the same bits on any threads."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.kernels.inner_search import (
    FITNESS,
    Problem,
    Variation,
    enumerate_front,
    evolve,
    exact_front,
    sample,
    score,
    score_cuda,
    score_reference,
    select,
    vary,
)


def problem(
    options: list[int], metrics: int = 2, objectives: int | None = None, seed: int = 0, levels: int = 0, limit: float = np.inf
) -> Problem:
    """Random tables; with `levels` few distinct whole numbers, so that ties are everywhere. `limit`: a quantile."""
    rng = np.random.default_rng(seed)
    draw = (
        (lambda n: rng.integers(0, levels, (n, metrics)).astype(float)) if levels else (lambda n: rng.normal(size=(n, metrics)))
    )
    tables = [draw(n) for n in options]
    free = Problem(tables, objectives or metrics)
    if limit == np.inf:
        return free
    bounds = np.quantile(score_reference(free, everything(free)), limit, axis=0)
    return Problem(tables, objectives or metrics, bounds.tolist())


def everything(p: Problem) -> np.ndarray:
    return np.array(list(product(*map(range, p.options))), np.uint16)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def front_by_hand(p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Of all genotypes within the limits, those that none dominates; of equals the first."""
    genotypes = everything(p)
    values = score_reference(p, genotypes)
    inside = (values <= p.bounds).all(1)
    genotypes, values = genotypes[inside], values[inside]
    goals = values[:, : p.objectives]
    no_worse = (goals[:, None] <= goals[None]).all(2)  # [i, j]: i is no worse than j
    beaten = no_worse & ~no_worse.T
    repeated = np.triu(no_worse & no_worse.T, 1)
    kept = np.flatnonzero(~(beaten | repeated).any(0)).tolist()
    order = sorted(kept, key=lambda i: tuple(goals[i]))
    return genotypes[order], values[order]


def ranks_by_hand(goals: np.ndarray) -> list[int]:
    """Fronts peeled off one after another."""
    rank = [-1] * len(goals)
    level = 0
    while -1 in rank:
        left = [i for i, r in enumerate(rank) if r < 0]
        for i in [i for i in left if not any(dominates(goals[j], goals[i]) for j in left)]:
            rank[i] = level
        level += 1
    return rank


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(sizes, st.integers(1, 6), st.integers(0, 50), st.integers(0, 40))
def test_scores_are_the_reference_to_the_bit(options, metrics, seed, count):
    p = problem(options, metrics, seed=seed)
    rng = np.random.default_rng(seed)
    genotypes = rng.integers(0, options, (count, len(options))).astype(np.uint16)
    assert np.array_equal(score(p, genotypes), score_reference(p, genotypes))


def test_scores_of_many_genotypes_with_many_options():
    p = problem([65536, 3, 1000], 2)
    genotypes = np.random.default_rng(1).integers(0, p.options, (20000, 3)).astype(np.uint16)
    expected = p.tables[0][genotypes[:, 0]] + p.tables[1][genotypes[:, 1]] + p.tables[2][genotypes[:, 2]]
    for threads in (1, 3):
        np.testing.assert_array_equal(score(p, genotypes, threads), expected)


@settings(max_examples=60)
@given(
    sizes,
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 30),
    st.sampled_from([0, 3]),
    st.sampled_from([np.inf, 0.4, 0.0]),
)
def test_enumeration_is_the_front_by_hand(options, metrics, objectives, seed, levels, limit):
    p = problem(options, metrics, min(objectives, metrics), seed, levels, limit)
    genotypes, values = front_by_hand(p)
    for threads in (1, 2):
        found = enumerate_front(p, threads)
        np.testing.assert_array_equal(found[1], values)
        np.testing.assert_array_equal(found[0], genotypes)


@settings(max_examples=60)
@given(
    sizes,
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 30),
    st.sampled_from([0, 3]),
    st.sampled_from([np.inf, 0.4, 0.0]),
)
def test_layer_by_layer_finds_the_values_of_the_enumeration(options, metrics, objectives, seed, levels, limit):
    p = problem(options, metrics, min(objectives, metrics), seed, levels, limit)
    found = exact_front(p)
    assert found is not None
    goals = slice(0, p.objectives)
    np.testing.assert_array_equal(found[1][:, goals], front_by_hand(p)[1][:, goals])
    np.testing.assert_array_equal(score_reference(p, found[0]), found[1])
    assert (found[1] <= p.bounds).all()


def test_a_front_that_is_too_large_is_not_cut():
    p = problem([4] * 5, 2, seed=1)
    size = len(front_by_hand(p)[0])
    assert size > 3
    assert exact_front(p, size - 1) is None


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 100), st.sampled_from([0, 2, 5]))
def test_ranks_are_those_of_fronts_peeled_by_hand(objectives, count, seed, levels):
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, levels, (count, objectives)) if levels else rng.normal(size=(count, objectives))).astype(float)
    genotypes = np.arange(count, dtype=np.uint16)[:, None]  # all different
    p = Problem([np.zeros((64, objectives))], objectives)
    indices, fitness = select(p, genotypes, values, count)
    assert sorted(indices.tolist()) == list(range(count))
    expected = ranks_by_hand(values)
    assert fitness["rank"].tolist() == [expected[i] for i in indices]


def crowding_by_hand(goals: np.ndarray, ranks: list[int]) -> np.ndarray:
    """Deb et al. 2002, for points without ties."""
    found = np.zeros(len(goals))
    for rank in set(ranks):
        members = [i for i, r in enumerate(ranks) if r == rank]
        for j in range(goals.shape[1]):
            order = sorted(members, key=lambda i: goals[i, j])
            span = goals[order[-1], j] - goals[order[0], j]
            found[order[0]] = found[order[-1]] = np.inf
            for before, i, after in zip(order, order[1:], order[2:], strict=False):
                found[i] += (goals[after, j] - goals[before, j]) / span
    return found


@given(st.integers(2, 4), st.integers(1, 50), st.integers(0, 100), st.data())
def test_survivors_are_of_the_lowest_rank_and_then_the_least_crowded(objectives, count, seed, data):
    keep = data.draw(st.integers(0, count))
    values = np.random.default_rng(seed).normal(size=(count, objectives))
    p = Problem([np.zeros((64, objectives))], objectives)
    indices, fitness = select(p, np.arange(count, dtype=np.uint16)[:, None], values, keep)
    ranks = ranks_by_hand(values)
    crowding = crowding_by_hand(values, ranks)
    np.testing.assert_allclose(fitness["crowding"], crowding[indices], rtol=1e-9)
    merit = sorted((ranks[i], -crowding[i]) for i in range(count))
    assert sorted(ranks[i] for i in indices) == [r for r, _ in merit[:keep]]
    np.testing.assert_allclose(sorted(-crowding[i] for i in indices), sorted(c for _, c in merit[:keep]), rtol=1e-9)


def test_limits_come_before_objectives_and_the_worst_excess_counts():
    values = np.array([[9.0, 1.0], [0.0, 2.5], [5.0, 1.5], [0.0, 2.2], [7.0, 2.0], [-3.0, 2.2]])
    p = Problem([np.zeros((8, 2))], 1, [6.0, 2.0])
    indices, fitness = select(p, np.arange(6, dtype=np.uint16)[:, None], values, 6)
    # Excess: 9 is half over 6, 2.5 a quarter over 2, 2.2 a tenth, 7 a sixth.
    assert indices.tolist() == [2, 5, 3, 4, 1, 0]
    assert fitness["rank"].tolist() == [0, 1, 1, 2, 3, 4]


@given(st.integers(1, 30), st.integers(0, 50))
def test_copies_survive_last(count, seed):
    genotypes = np.random.default_rng(seed).integers(0, 2, (count, 3)).astype(np.uint16)
    p = problem([2, 2, 2], 2, levels=2, seed=seed)
    distinct = len(np.unique(genotypes, axis=0))
    indices, fitness = select(p, genotypes, score_reference(p, genotypes), count)
    assert len(np.unique(genotypes[indices[:distinct]], axis=0)) == distinct
    assert sorted(indices.tolist()) == list(range(count))
    assert (fitness["rank"][distinct:] > max(fitness["rank"][:distinct], default=0)).all()


def test_children_are_made_of_their_parents_options_where_they_do_not_mutate():
    p = problem([7] * 30, 2)
    v = Variation(population=200, mutation=0.0, crossover=1.0, seed=5)
    parents = np.repeat(np.arange(2, dtype=np.uint16), 100)[:, None] * np.full((200, 30), 3, np.uint16)
    parents[:, 0] = np.arange(200) % 7
    fitness = np.zeros(200, FITNESS)
    children = vary(p, v, parents, score(p, parents), fitness, 1)
    mixed = [set(c[1:].tolist()) for c in children]
    assert sum(m == {0, 3} for m in mixed) > 50
    off = [sum(o not in (0, 3) for o in c[1:]) for c in children]
    assert max(off) <= 1  # a child that would be a copy takes one step
    assert children.max() < 7


@pytest.mark.parametrize("by", ["domination", "room", "limits"])
def test_tournaments_prefer_what_dominates_and_then_room(by):
    """Place k from the top wins a tournament of two of n with a chance of (2 (n - k) - 1) / n^2."""
    n = 100
    # The first layer tells parents apart; the second has two options, so that a copy, which must change, is told by it.
    wide = Problem([np.zeros((n, 2)), np.zeros((2, 2))], 2)
    parents = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.uint16)
    fitness = np.zeros(n, FITNESS)
    values = np.zeros((n, 2))
    if by == "domination":
        values[:] = np.arange(n)[:, None]
        fitness["crowding"] = np.arange(n)  # would say the opposite
    elif by == "room":
        values[:, 0], values[:, 1] = np.arange(n), -np.arange(n)
        fitness["crowding"] = n - np.arange(n)
    else:
        values[:] = -np.arange(n)[:, None]  # would say the opposite
        fitness["crowding"] = -1.0 - np.arange(n)
    winners = np.zeros(n)
    for generation in range(200):
        v = Variation(population=n, mutation=0.0, crossover=0.0, seed=1)
        children = vary(wide, v, parents, values, fitness, generation + 1)
        winners += np.bincount(children[children[:, 1] == 1][:, 0], minlength=n)
    expected = (2 * (n - np.arange(n)) - 1) / n**2
    share = winners / winners.sum()
    assert np.abs(share[:50].sum() - expected[:50].sum()) < 0.03
    assert np.corrcoef(share, expected)[0, 1] > 0.9


def test_mutation_changes_as_often_as_it_says():
    p = problem([5] * 100, 2)
    v = Variation(population=500, mutation=0.2, crossover=0.0, seed=3)
    parents = np.zeros((500, 100), np.uint16)
    changed = vary(p, v, parents, score(p, parents), np.zeros(500, FITNESS), 1)
    assert abs((changed != 0).mean() - 0.2) < 0.01
    counts = np.bincount(changed[changed != 0], minlength=5)[1:]
    assert counts.min() > 0.9 * counts.mean()


def test_first_generation_is_uniform():
    p = problem([3, 7, 1, 20], 1)
    found = sample(p, Variation(population=21000, seed=9))
    for layer, n in enumerate(p.options):
        counts = np.bincount(found[:, layer], minlength=n)
        assert ((counts - 21000 / n) ** 2 / (21000 / n)).sum() < n + 5 * (2 * n) ** 0.5


@pytest.mark.parametrize("metrics", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(metrics):
    p = problem([4, 6, 2, 5, 9, 3], metrics, min(metrics, 3), seed=2)
    runs = [evolve(p, Variation(population=20000 if metrics < 3 else 9000, seed=11), 3, threads) for threads in (1, 2, 5)]
    for run in runs[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(run, runs[0], strict=True))
    other = evolve(p, Variation(population=len(runs[0][0]), seed=12), 3, 1)
    assert not np.array_equal(other[0], runs[0][0])


def test_evolution_is_the_steps_one_after_another():
    p = problem([6] * 8, 2, seed=4)
    v = Variation(population=50, seed=6)
    genotypes = sample(p, v)
    values = score(p, genotypes)
    indices, fitness = select(p, genotypes, values, 50)
    genotypes, values = genotypes[indices], values[indices]
    for generation in (1, 2, 3):
        children = vary(p, v, genotypes, values, fitness, generation)
        genotypes, values = np.concatenate([genotypes, children]), np.concatenate([values, score(p, children)])
        indices, fitness = select(p, genotypes, values, 50)
        genotypes, values = genotypes[indices], values[indices]
    found = evolve(p, v, 4)
    assert np.array_equal(found[0], genotypes)
    assert np.array_equal(found[1], values)
    assert np.array_equal(found[2], fitness)


@pytest.mark.parametrize("metrics", [1, 2, 3])
def test_evolution_reaches_the_front_of_a_small_space(metrics):
    p = problem([4] * 6, metrics, seed=8)
    _, values, fitness = evolve(p, Variation(population=400, seed=1), 60)
    found = np.unique(values[fitness["rank"] == 0], axis=0)
    expected = np.unique(front_by_hand(p)[1], axis=0)
    assert len(found) >= 0.95 * len(expected)
    assert all((expected == row).all(1).any() for row in found)


def test_evolution_finds_the_best_within_limits():
    p = problem([5] * 6, 2, 1, seed=3, limit=0.3)
    _, values, _ = evolve(p, Variation(population=200, seed=2), 60)
    inside = values[(values <= p.bounds).all(1)]
    assert inside[:, 0].min() == front_by_hand(p)[1][0, 0]


def test_a_space_smaller_than_the_population():
    p = problem([2, 1], 2, seed=0)
    genotypes, values, _ = evolve(p, Variation(population=7, seed=0), 3)
    assert {tuple(g) for g in genotypes.tolist()} == {(0, 0), (1, 0)}
    np.testing.assert_array_equal(values, score_reference(p, genotypes))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Problem([], 1),
        lambda: Problem([np.zeros((0, 1))], 1),
        lambda: Problem([np.zeros((2, 1)), np.zeros((2, 2))], 1),
        lambda: Problem([np.zeros((2, 17))], 1),
        lambda: Problem([np.full((2, 1), np.nan)], 1),
        lambda: Problem([np.full((2, 1), np.inf)], 1),
        lambda: Problem([np.zeros((2, 2))], 3),
        lambda: Problem([np.zeros((2, 2))], 1, [1.0]),
        lambda: Problem([np.zeros((2, 2))], 1, [1.0, np.nan]),
        lambda: score(problem([2, 2]), np.full((1, 2), 2, np.uint16)),
        lambda: score(problem([2, 2]), np.zeros((1, 3), np.uint16)),
        lambda: score(problem([2, 2]), np.zeros((1, 2), np.int64)),
        lambda: select(problem([2, 2]), np.zeros((1, 2), np.uint16), np.full((1, 2), np.nan), 1),
        lambda: select(problem([2, 2]), np.zeros((1, 2), np.uint16), np.zeros((1, 2)), 2),
        lambda: exact_front(problem([2], 3)),
        lambda: evolve(problem([2]), Variation(), 0),
        lambda: Variation(population=0),
        lambda: Variation(mutation=1.5),
    ],
)
def test_what_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


@pytest.mark.gpu
@pytest.mark.parametrize("metrics", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("options", [[12] * 20, [5000, 3, 65536]])
@pytest.mark.parametrize("count", [0, 1, 257, 300_001])
def test_scores_on_the_gpu_have_the_bits_of_the_reference(metrics, options, count):
    p = problem(options, metrics)
    genotypes = np.random.default_rng(0).integers(0, options, (count, len(options))).astype(np.uint16)
    found = score_cuda(p, torch.from_numpy(genotypes).cuda())
    np.testing.assert_array_equal(found.cpu().numpy(), score_reference(p, genotypes))
