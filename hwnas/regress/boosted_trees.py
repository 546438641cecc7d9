"""Gradient boosted regression trees (Friedman 2001), grown by scikit-learn and kept as arrays, so that they can be JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """Node i sends x to `left[i]` where x[feature[i]] <= threshold[i], else to `right[i]`; a leaf's feature is negative."""

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]

    def predict(self, x: Array) -> Array:
        feature, left, right = (np.array(v, np.intp) for v in (self.feature, self.left, self.right))
        threshold, at = np.array(self.threshold), np.zeros(len(x), np.intp)
        while np.any(inner := feature[at] >= 0):
            rows, nodes = np.flatnonzero(inner), at[inner]
            at[rows] = np.where(x[rows, feature[nodes]] <= threshold[nodes], left[nodes], right[nodes])
        return np.array(self.value)[at]


@dataclass(frozen=True)
class BoostedTrees:
    base: float
    trees: Sequence[Tree]

    def predict(self, x: Array) -> Array:
        """[n, features] -> [n]"""
        x = x.astype(np.float32).astype(np.float64)  # thresholds lie between single precision values
        return self.base + sum((tree.predict(x) for tree in self.trees), np.zeros(len(x)))

    def to_json(self) -> dict[str, Any]:
        return {"base": self.base, "trees": [vars(tree) for tree in self.trees]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BoostedTrees:
        """ValueError, TypeError or KeyError if these are no trees."""
        trees = [Tree(**tree) for tree in values["trees"]]
        for tree in trees:
            size = len(tree.feature)
            if any(len(column) != size for column in vars(tree).values()) or not size:
                raise ValueError("the columns of a tree are of one length")
            inner = [i for i in range(size) if tree.feature[i] >= 0]
            if any(not i < child < size for i in inner for child in (tree.left[i], tree.right[i])):
                raise ValueError("the children of a node come after it")
        return cls(float(values["base"]), trees)


def grow_trees(x: Array, y: Array, trees: int = 150, depth: int = 4, rate: float = 0.1, seed: int = 0) -> BoostedTrees:
    """Least squares; x [n, features], y [n]."""
    from sklearn.ensemble import GradientBoostingRegressor

    grown = GradientBoostingRegressor(n_estimators=trees, max_depth=depth, learning_rate=rate, random_state=seed)
    grown.fit(x, y)
    return BoostedTrees(float(y.mean()), [_tree(row[0].tree_, rate) for row in grown.estimators_])


def _tree(tree: Any, rate: float) -> Tree:
    columns = tree.feature, tree.threshold, tree.children_left, tree.children_right, rate * tree.value[:, 0, 0]
    return Tree(*(column.tolist() for column in columns))
