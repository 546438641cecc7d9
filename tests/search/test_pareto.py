from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.search.pareto import crowding_distances, dominance_ranks, hypervolume, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


@given(POINTS)
def test_the_front_against_brute_force(points):
    """Small numbers, so that ties are common."""
    front = pareto_front(points, cost=lambda p: p[0], value=lambda p: p[1])
    expected = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)}
    assert front == sorted(expected)  # cheapest first, one of equals


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=25), st.randoms())
def test_the_order_of_the_items_does_not_matter(points, rng):
    shuffled = points[:]
    rng.shuffle(shuffled)
    front = pareto_front(points, cost=lambda p: p[0], value=lambda p: p[1])
    assert pareto_front(shuffled, cost=lambda p: p[0], value=lambda p: p[1]) == front
    for p in points:  # everything is on it or beaten by something on it
        assert any(q[0] <= p[0] and q[1] >= p[1] for q in front)


CLOUDS = st.integers(1, 3).flatmap(lambda k: st.lists(st.tuples(*[st.integers(0, 5)] * k), min_size=1, max_size=18))


@given(CLOUDS)
def test_ranks_against_peeling_by_hand(points):
    left, rank = dict(enumerate(points)), 0
    ranks = dominance_ranks(points)
    while left:
        best = [
            i
            for i, p in left.items()
            if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in left.values())
        ]
        assert sorted(best) == np.flatnonzero(ranks == rank).tolist()
        for i in best:
            del left[i]
        rank += 1


@given(CLOUDS)
def test_hypervolume_against_counting_unit_cubes(points):
    reference = [5] * len(points[0])
    cubes = np.array(np.meshgrid(*[np.arange(5)] * len(reference))).reshape(len(reference), -1).T
    dominated = (cubes[:, None] >= np.array(points)).all(2).any(1).sum()
    assert hypervolume(points, reference) == pytest.approx(dominated)


def test_crowding_is_the_width_of_the_gap_around_a_point():
    points = [(0.0, 4.0), (1.0, 2.0), (3.0, 1.0), (4.0, 0.0)]
    assert crowding_distances(points).tolist() == pytest.approx([np.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, np.inf])
