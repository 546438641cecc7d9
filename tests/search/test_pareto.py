from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hwnas.search.pareto import pareto_front

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
