"""tabulate: a predictor of a whole space as a table, so that genotypes are predicted by the million, natively.

A layer of the table is a node of the space; its entries are the assignments of the choices that decide the node's placed op,
and hold that op's price. Exact for chains, whose networks are their nodes; a space in which one choice unmakes another's node
(zeros and dead branches of cells) has no such table.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add, Zero
from hwnas.kernels.additive import MOST_CHOICES, score
from hwnas.latency.additive import AdditiveModel
from hwnas.latency.predictor import LatencyPredictor
from hwnas.lower.cost import op_macs_params
from hwnas.placements import placed_by_choices
from hwnas.space import Space

PROBES = 20  # genotypes with which a table is checked against its predictor
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tabulated:
    """`prices` [layers, options] in ms and `weights` [layers, options] in bytes. `deciders`: of each layer, which numbers of a
    genotype decide it and how many options each has, the last varying fastest."""

    predictor: LatencyPredictor
    model: AdditiveModel
    prices: NDArray[np.float32]
    weights: NDArray[np.float32]
    deciders: tuple[tuple[tuple[int, int], ...], ...]

    def codes(self, genotypes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Genotypes [n, choices] as entries of the table, [n, layers]."""
        result = np.zeros((len(genotypes), len(self.deciders)), np.uint8)
        for layer, deciders in enumerate(self.deciders):
            for choice, size in deciders:
                result[:, layer] *= np.uint8(size)
                result[:, layer] += genotypes[:, choice]
        return result

    def predict(self, genotypes: NDArray[np.uint8], threads: int | None = None) -> NDArray[np.float32]:
        """[n, choices] -> [n] ms, the predictions of the predictor in single precision. ValueError if one is not a genotype."""
        sizes = {choice: size for deciders in self.deciders for choice, size in deciders}
        for choice, size in sizes.items():
            if len(genotypes) and genotypes[:, choice].max() >= size:
                raise ValueError(f"choice {choice} takes 0 to {size - 1}, got {int(genotypes[:, choice].max())}")
        codes = self.codes(genotypes)
        latency_ms = score(self.prices, codes, self.model.fixed_ms, threads)
        beside = self.model.beside_ms(score(self.weights, codes, 0.0, threads).astype(np.float64))
        return np.maximum(latency_ms + beside.astype(np.float32), np.float32(self.predictor.floor_ms))


def tabulate(predictor: LatencyPredictor, space: Space) -> Tabulated:
    """UserError if the predictor is not additive, or the space is not a chain of nodes with at most 256 entries each."""
    model = predictor.model
    if not isinstance(model, AdditiveModel):
        raise UserError("only additive predictors can be tabulated", got=predictor.name)
    index = {choice.name: (i, len(choice.options)) for i, choice in enumerate(space.choices)}
    prices: list[list[float]] = []
    weights: list[list[float]] = []
    layers: list[tuple[tuple[int, int], ...]] = []
    for name, found in placed_by_choices(space).items():
        names = sorted({choice for assignment in found for choice, _ in assignment}, key=index.__getitem__)
        deciders = tuple(index[choice] for choice in names)
        if prod(size for _, size in deciders) > MOST_CHOICES:
            raise UserError(f"a tabulated node has at most {MOST_CHOICES} entries", got=f"{name}: {', '.join(names)}")
        if any(placed.graph.only is prim for placed in found.values() for prim in (Add, Zero)):
            raise UserError("only chains can be tabulated", got=f"{space.name}, in which {name} may be cut away")
        row, row_weights = [], []
        for values in product(*(range(size) for _, size in deciders)):
            placed = found[frozenset(zip(names, values, strict=True))]
            row.append(0.0 if placed.graph.is_identity() else model.op_ms(placed))
            row_weights.append(_weight_bytes(placed))
        prices.append(row)
        weights.append(row_weights)
        layers.append(deciders)
    table = Tabulated(predictor, model, _padded(prices), _padded(weights), tuple(layers))
    _check(table, space)
    return table


def _weight_bytes(placed: PlacedOp) -> float:
    return 4.0 * op_macs_params(placed)[1]


def _padded(rows: list[list[float]]) -> NDArray[np.float32]:
    table = np.zeros((len(rows), max(map(len, rows))), np.float32)
    for filled, row in zip(table, rows, strict=True):
        filled[: len(row)] = row
    return table


def _check(table: Tabulated, space: Space) -> None:
    rng = random.Random(0)
    genotypes = [space.sample(rng) for _ in range(PROBES)]
    expected = np.array([p.latency_ms for p in table.predictor.predict([space.decode(g) for g in genotypes])])
    found = table.predict(np.array(genotypes, np.uint8))
    if np.abs(found / expected - 1).max() > TOLERANCE:
        raise UserError("this predictor prices more than ops in this space", got=space.name, remedy="predict archs instead")
