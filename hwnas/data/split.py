"""Stratified choices: every class keeps its share, and none is left without images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def share(count: int, part: float, classes: int) -> int:
    """How many of `count` images are `part` of them, but one a class at least."""
    return max(classes, int(count * part + 1e-6))


def choose(labels: Labels, total: int, least: int, seed: tuple[int, ...]) -> tuple[Labels, Labels]:
    """Indices of `total` images in the proportions of all, `least` or more of each class, and the indices of the rest.

    Both are in ascending order.
    """
    counts = np.bincount(labels)
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(quotas(counts, total, least)):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[:quota]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def quotas(counts: Labels, total: int, least: int) -> Labels:
    """Shares of `total` in proportion to `counts`, by the largest remainders, then raised to `least` where possible."""
    count = int(counts.sum())
    floor = np.minimum(least, counts)
    if not floor.sum() <= total <= count:
        raise ValueError(f"{total} is not between {floor.sum()} and {count}")
    exact = counts * total
    result = exact // count
    order = np.argsort(-(exact % count), kind="stable")
    result[order[: total - int(result.sum())]] += 1
    while (result < floor).any():
        result[np.argmax(result - floor)] -= 1
        result[np.argmax(result < floor)] += 1
    return np.asarray(result, np.int64)
