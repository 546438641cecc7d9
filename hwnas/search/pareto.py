"""The Pareto front: what no other point beats in every respect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Sequence[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items that no other one beats at lower or equal cost with higher or equal value; cheapest first, one of equals."""
    front: list[T] = []
    for item in sorted(items, key=lambda i: (cost(i), -value(i))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front
