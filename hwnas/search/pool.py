"""Pool: the candidates that a surrogate judges, as blocks of features, with their distances to what was asked for.

A pool of a small space holds all that the budget admits. Of a larger one it holds random genotypes, and gains more of them and
neighbours of the best with every ask.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.search.admission import Admission
from hwnas.search.encoding import Array, Encoding
from hwnas.space import Genotype

_REPEATS = 4  # proposals that repeat earlier ones, after which no more are asked for
_REFERENCE = 256  # genotypes, within the budget or not, that set the scales
_ROOM = 64  # trials that distances have room for at first
START, RANDOM, NEIGHBOURS = 128, 16, 8  # of an evolving pool: at first; and with every growth, the second for each parent


class Pool:
    """`genotypes` [rows] are distinct; `asked` are the rows that were asked for, in order, also more than once."""

    def __init__(self, admission: Admission, rng: random.Random) -> None:
        """Complete, with all admitted genotypes, if the space is small enough to be listed."""
        self.admission, self.rng = admission, rng
        self.genotypes: list[Genotype] = []
        self.asked: list[int] = []
        self.chances = np.zeros(0)  # [rows], of keeping the budget
        self._metrics = {name: np.zeros(0) for name in admission.traits(admission.fallback).metrics}  # [rows] each
        self._row: dict[Genotype, int] = {}
        self._keys: list[str] = []
        self._rows_of: dict[str, list[int]] = {}  # by key of the network
        self._closed = np.zeros(0, np.bool_)  # [rows], whose network was asked for
        self.complete = admission.space.size <= admission.listing
        if self.complete:
            first = [g for g in admission.space.genotypes() if admission.admits(g)]
        else:
            first = [admission.fallback, *_distinct(lambda: admission.sample(rng), START)]
        self._encoding = Encoding(admission)
        # What varies little within the budget must not count as much as what varies throughout the space.
        throughout = self._encoding([admission.space.sample(rng) for _ in range(_REFERENCE)])
        deviations = [float(np.sqrt(block.var(0, dtype=np.float64).sum())) for block in throughout]
        self._scales = [1 / d if d > 1e-6 else 0.0 for d in deviations]
        self._blocks = [np.zeros((0, 0), np.float32) for _ in throughout]  # [rows, features] each, of unit total variance
        self._distances = np.zeros((len(throughout), _ROOM, 0), np.float32)  # [blocks, room for asked, room for rows]
        self._add(first)

    def grow(self, parents: Sequence[Genotype]) -> None:
        """Adds random genotypes and neighbours of the parents, unless the pool is complete."""
        if not self.complete:
            found = _distinct(lambda: self.admission.sample(self.rng), RANDOM)
            for parent in parents:
                found += _distinct(lambda p=parent: self.admission.mutate(p, self.rng), NEIGHBOURS)  # type: ignore[misc]
            self._add(found)

    def ask(self, genotype: Genotype) -> None:
        """Notes that a genotype is asked for."""
        self._add([genotype])
        row, done = self._row[genotype], len(self.asked)
        if done == self._distances.shape[1]:
            self._distances = np.concatenate([self._distances, np.zeros_like(self._distances)], 1)
        for block, distances in zip(self._blocks, self._distances, strict=True):
            distances[done, : len(block)] = _squared_distances(block[row : row + 1], block)[0]
        self.asked.append(row)
        self._closed[self._rows_of[self._keys[row]]] = True

    def open(self) -> NDArray[np.bool_]:
        """[rows]: of which the network was not asked for; if there is none, all."""
        found = ~self._closed
        return found if found.any() else ~found

    def unasked(self) -> list[int]:
        """Rows of which the network was not asked for, one of each network."""
        return [rows[0] for rows in self._rows_of.values() if not self._closed[rows[0]]]

    def distances(self) -> Array:
        """Squared distances [blocks, asked, rows]."""
        return self._distances[:, : len(self.asked), : len(self.genotypes)]

    def metric(self, name: str) -> NDArray[np.float64]:
        """[rows]"""
        return self._metrics[name]

    def features(self, rows: list[int] | slice) -> Array:
        """All blocks side by side [rows, features]."""
        return np.concatenate([block[rows] for block in self._blocks], 1)

    def _add(self, genotypes: Iterable[Genotype]) -> None:
        new = [g for g in dict.fromkeys(genotypes) if g not in self._row]
        if not new:
            return
        old = len(self.genotypes)
        known = [self.admission.traits(g) for g in new]
        closed = []
        for row, (genotype, traits) in enumerate(zip(new, known, strict=True), start=old):
            self._row[genotype] = row
            same = self._rows_of.setdefault(traits.key, [])
            closed.append(bool(same) and same[0] < old and bool(self._closed[same[0]]))
            same.append(row)
        self.genotypes += new
        self._keys += [t.key for t in known]
        self._closed = np.append(self._closed, closed)
        self.chances = np.append(self.chances, [t.chance for t in known])
        for name, values in self._metrics.items():
            self._metrics[name] = np.append(values, [t.metrics[name] for t in known])
        added = self._encoding(new)
        if len(self.genotypes) > self._distances.shape[2]:
            room = np.zeros((*self._distances.shape[:2], max(len(new), old)), np.float32)
            self._distances = np.concatenate([self._distances, room], 2)
        for i, (scale, part) in enumerate(zip(self._scales, added, strict=True)):
            block = self._blocks[i]
            padded = np.pad(block, ((0, 0), (0, part.shape[1] - block.shape[1])))  # labels that were not met before
            self._blocks[i] = block = np.concatenate([padded, scale * part])
            if self.asked:
                found = _squared_distances(block[self.asked], block[old:])
                self._distances[i, : len(self.asked), old : len(self.genotypes)] = found


def _distinct(propose: Callable[[], Genotype], count: int) -> list[Genotype]:
    """So many proposals, or fewer where they repeat themselves: a narrow budget admits few, and finding them takes long."""
    found: dict[Genotype, None] = {}
    for tried in range(count):
        if tried - len(found) > _REPEATS:
            break
        found[propose()] = None
    return list(found)


def _squared_distances(a: Array, b: Array) -> Array:
    """[n, features], [m, features] -> [n, m]"""
    found: Array = np.maximum(0, (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T))
    return found
