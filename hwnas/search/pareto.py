"""Pareto dominance: the front, its ranks and crowding, and the volume that it dominates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")
Array = NDArray[np.float64]


def pareto_front(items: Sequence[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items that no other one beats at lower or equal cost with higher or equal value; cheapest first, one of equals."""
    front: list[T] = []
    for item in sorted(items, key=lambda i: (cost(i), -value(i))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front


def dominance_ranks(points: ArrayLike) -> NDArray[np.int64]:
    """The number of the front in which each point [n, objectives] lies; 0 is the best, all objectives are minimised.

    Non-dominated sorting (Deb et al. 2002).
    """
    values = np.asarray(points, dtype=np.float64)
    no_worse: NDArray[np.bool_] = np.all(values[:, None] <= values, axis=2)
    dominates = np.logical_and(no_worse, np.any(values[:, None] < values, axis=2))
    ranks = np.full(len(values), -1)
    rank = 0
    while (ranks < 0).any():
        left = np.flatnonzero(ranks < 0)
        ranks[left[~dominates[np.ix_(left, left)].any(0)]] = rank
        rank += 1
    return ranks


def crowding_distances(points: ArrayLike) -> Array:
    """How far each point [n, objectives] of one front is from its neighbours; the ends are infinitely far (Deb et al. 2002)."""
    values = np.asarray(points, dtype=np.float64)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume that points [n, objectives], all minimised, dominate below the reference [objectives].

    Slices along the last objective (Zitzler and Thiele 1998).
    """
    limit = np.asarray(reference, dtype=np.float64)
    values = np.asarray(points, dtype=np.float64).reshape(-1, len(limit))
    values = values[(values < limit).all(1)]
    if not len(values):
        return 0.0
    if len(limit) == 1:
        return float(limit[0] - values.min())
    values = values[np.argsort(values[:, -1], kind="stable")]
    ends = np.append(values[1:, -1], limit[-1])
    slices = zip(values[:, -1], ends, strict=True)
    return float(
        sum(
            (end - start) * hypervolume(values[: i + 1, :-1], limit[:-1])
            for i, (start, end) in enumerate(slices)
            if end > start
        )
    )
