"""Search over rows of options whose metrics are sums of table entries: scoring, NSGA-II, exact Pareto fronts.

Shapes, with n rows, L layers and m metrics:
    genotypes  [n, L] uint16, one option per layer
    values     [n, m] float64, all minimised or limited from above
    tables     L arrays [options of the layer, m]

A metric is the sum of its entries, added from the first layer to the last, in every function here: equal genotypes have equal
bits. Random numbers are counted, not drawn in turn (SplitMix64 of seed, generation and individual), so results do not depend
on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas import _native

Genotypes = NDArray[np.uint16]
Values = NDArray[np.float64]
Fitness = NDArray[Any]

MOST_OPTIONS = 1 << 16
MOST_LABELS = 1 << 21  # partial genotypes on a front that exact_front keeps at once
# Outside the limits, and for copies, `crowding` is -1 - rank.
FITNESS = np.dtype([("rank", np.int32), ("crowding", np.float64)], align=True)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is summed, what is minimised, what is limited.

    `tables`: for each layer [options, metrics]. `objectives`: so many of the metrics, from the first, are minimised.
    `limits`: the most that each metric may be, infinity where there is none.
    """

    tables: Sequence[NDArray[np.float64]]
    objectives: int
    limits: Sequence[float] = ()

    def __post_init__(self) -> None:
        shapes = [np.shape(t) for t in self.tables]
        fits = all(len(s) == 2 and 1 <= s[0] <= MOST_OPTIONS and s[1] == shapes[0][1] for s in shapes)
        if not shapes or not fits or not 1 <= shapes[0][1] <= _native.inner_search.max_metrics:
            raise ValueError(
                f"inner search needs a table [options, metrics] for each layer, 1 to {MOST_OPTIONS} options and"
                f" 1 to {_native.inner_search.max_metrics} metrics, the same in all, got {shapes[:8]}"
            )
        if not np.isfinite(self.table).all():
            worst = self.table[~np.isfinite(self.table)][0]
            raise ValueError(f"inner search needs finite table entries, got {worst}; say what is forbidden by a limit")
        if not 1 <= self.objectives <= self.metrics:
            raise ValueError(f"inner search minimises 1 to {self.metrics} of its metrics, got {self.objectives}")
        if len(self.limits) not in (0, self.metrics) or np.isnan(self.bounds).any():
            raise ValueError(f"inner search needs a limit for each of {self.metrics} metrics, got {list(self.limits)}")

    @property
    def layers(self) -> int:
        return len(self.tables)

    @property
    def metrics(self) -> int:
        return int(self.table.shape[1])

    @property
    def options(self) -> list[int]:
        return [len(t) for t in self.tables]

    @property
    def size(self) -> int:
        """The number of genotypes."""
        return prod(self.options)

    @cached_property
    def table(self) -> Values:
        """All layers' rows under each other."""
        return np.ascontiguousarray(np.concatenate([np.asarray(t, np.float64) for t in self.tables]))

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """[L + 1] the row of `table` at which each layer begins."""
        return np.cumsum([0, *(len(t) for t in self.tables)], dtype=np.int64)

    @cached_property
    def bounds(self) -> Values:
        return np.array(self.limits if len(self.limits) else [np.inf] * self.metrics, np.float64)

    def native(self) -> tuple[int, int, int, int, int, int]:
        addresses = (self.table.ctypes.data, self.first.ctypes.data, self.bounds.ctypes.data)
        return (*addresses, self.layers, self.metrics, self.objectives)


@dataclass(frozen=True)
class Variation:
    """`crossover`: chance of a second parent; `mutation`: chance of each option to change, half over the layers by default."""

    population: int = 100
    crossover: float = 0.5
    mutation: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        chances = (self.crossover, 0.0 if self.mutation is None else self.mutation)
        if not 1 <= self.population < 2**31 or not all(0 <= c <= 1 for c in chances) or not 0 <= self.seed < 2**64:
            raise ValueError(
                f"evolution needs a population of at least 1, chances from 0 to 1 and a seed of 64 bits, got {self}"
            )

    def native(self, problem: Problem, generation: int = 0) -> tuple[int, float, float, int, int]:
        mutation = 0.5 / problem.layers if self.mutation is None else self.mutation
        return self.population, self.crossover, mutation, self.seed, generation


def _check(problem: Problem, genotypes: Genotypes) -> Genotypes:
    if genotypes.ndim != 2 or genotypes.shape[1] != problem.layers or genotypes.dtype != np.uint16:
        raise ValueError(f"genotypes are [n, {problem.layers}] of uint16, got {genotypes.shape} of {genotypes.dtype}")
    if len(genotypes) and (genotypes.max(0) >= np.array(problem.options)).any():
        raise ValueError(f"options are below {problem.options}, got {genotypes.max(0).tolist()}")
    return np.ascontiguousarray(genotypes)


def _check_values(problem: Problem, genotypes: Genotypes, values: Values) -> Values:
    if values.shape != (len(genotypes), problem.metrics) or values.dtype != np.float64 or np.isnan(values).any():
        raise ValueError(
            f"values are [{len(genotypes)}, {problem.metrics}] of float64 without NaN, got {values.shape} {values.dtype}"
        )
    return np.ascontiguousarray(values)


def score(problem: Problem, genotypes: Genotypes, threads: int | None = None) -> Values:
    """The metrics of each genotype."""
    genotypes = _check(problem, genotypes)
    values = np.empty((len(genotypes), problem.metrics))
    if len(genotypes):
        _native.inner_search.score_cpu(
            problem.native(), genotypes.ctypes.data, len(genotypes), values.ctypes.data, _threads(threads)
        )
    return values


def score_reference(problem: Problem, genotypes: Genotypes) -> Values:
    """The definition, in plain numpy, with the same signature."""
    genotypes = _check(problem, genotypes)
    values = np.zeros((len(genotypes), problem.metrics))
    for layer in range(problem.layers):
        values += problem.table[problem.first[layer] + genotypes[:, layer]]
    return values


def score_cuda(problem: Problem, genotypes: Tensor) -> Tensor:
    """`score` where the genotypes [n, L] uint16 lie on a GPU; values [n, m] float64 there. Options are not checked."""
    if not _native.with_cuda or genotypes.device.type != "cuda":
        raise ValueError(f"score_cuda needs genotypes on a GPU and a build with CUDA, got {genotypes.device}")
    if genotypes.dtype != torch.uint16 or genotypes.dim() != 2 or genotypes.shape[1] != problem.layers:
        raise ValueError(f"genotypes are [n, {problem.layers}] of uint16, got {tuple(genotypes.shape)} {genotypes.dtype}")
    genotypes = genotypes.contiguous()
    values = torch.empty(len(genotypes), problem.metrics, dtype=torch.float64, device=genotypes.device)
    if not len(genotypes):
        return values
    with torch.cuda.device(genotypes.device):
        table, first = (torch.from_numpy(a).to(genotypes.device) for a in (problem.table, problem.first))
        native = (table.data_ptr(), first.data_ptr(), 0, problem.layers, problem.metrics, problem.objectives)
        stream = torch.cuda.current_stream().cuda_stream
        _native.inner_search.score_cuda(
            native, len(problem.table), genotypes.data_ptr(), len(genotypes), values.data_ptr(), stream
        )
    return values


def sample(problem: Problem, variation: Variation, threads: int | None = None) -> Genotypes:
    """A population drawn uniformly: generation 0."""
    genotypes = np.empty((variation.population, problem.layers), np.uint16)
    _native.inner_search.sample_cpu(problem.native(), variation.native(problem), genotypes.ctypes.data, _threads(threads))
    return genotypes


def vary(
    problem: Problem,
    variation: Variation,
    parents: Genotypes,
    values: Values,
    fitness: Fitness,
    generation: int,
    threads: int | None = None,
) -> Genotypes:
    """As many children of parents that `select` chose: binary tournaments, uniform crossover, mutation.

    `generation` numbers the random streams.
    """
    parents = _check(problem, parents)
    values = _check_values(problem, parents, values)
    if len(parents) != variation.population or fitness.shape != (len(parents),) or fitness.dtype != FITNESS:
        raise ValueError(f"vary needs {variation.population} parents and their fitness, got {len(parents)} and {fitness.shape}")
    children, fitness = np.empty_like(parents), np.ascontiguousarray(fitness)
    _native.inner_search.vary_cpu(
        problem.native(), variation.native(problem, generation), parents.ctypes.data, values.ctypes.data,
        fitness.ctypes.data, children.ctypes.data, _threads(threads),
    )  # fmt: skip
    return children


def select(problem: Problem, genotypes: Genotypes, values: Values, keep: int) -> tuple[NDArray[np.int64], Fitness]:
    """Which rows survive, and their fitness: by limits, then non-dominated rank, then crowding distance; copies last."""
    genotypes = _check(problem, genotypes)
    values = _check_values(problem, genotypes, values)
    if not 0 <= keep <= len(genotypes):
        raise ValueError(f"select keeps at most the {len(genotypes)} rows that there are, got {keep}")
    indices, fitness = np.empty(keep, np.int64), np.empty(keep, FITNESS)
    if keep:
        _native.inner_search.select_cpu(
            problem.native(), genotypes.ctypes.data, values.ctypes.data, len(genotypes), keep,
            indices.ctypes.data, fitness.ctypes.data,
        )  # fmt: skip
    return indices, fitness


def evolve(
    problem: Problem, variation: Variation, generations: int, threads: int | None = None
) -> tuple[Genotypes, Values, Fitness]:
    """NSGA-II (Deb et al. 2002): the last population. Evaluates `generations` times the population, the first one included."""
    if generations < 1:
        raise ValueError(f"evolution needs at least one generation, got {generations}")
    n = variation.population
    genotypes, values, fitness = np.empty((n, problem.layers), np.uint16), np.empty((n, problem.metrics)), np.empty(n, FITNESS)
    _native.inner_search.evolve_cpu(
        problem.native(), variation.native(problem), generations, genotypes.ctypes.data, values.ctypes.data,
        fitness.ctypes.data, _threads(threads),
    )  # fmt: skip
    return genotypes, values, fitness


def enumerate_front(problem: Problem, threads: int | None = None) -> tuple[Genotypes, Values]:
    """The Pareto front of all genotypes within the limits, in order of the first objective, by looking at every one.

    Of genotypes with equal objectives the one that counts lowest stands, the last layer counting fastest.
    """
    return _front(problem, _native.inner_search.enumerate_cpu(problem.native(), _threads(threads)))


def exact_front(problem: Problem, most: int = MOST_LABELS) -> tuple[Genotypes, Values] | None:
    """The values of `enumerate_front` for one or two metrics, layer by layer: a dominated start has no undominated end.

    Nemhauser and Ullmann 1969, for the knapsack. None if more than `most` starts would have to be kept at once.
    """
    if problem.metrics > 2:
        raise ValueError(f"exact_front takes one or two metrics, got {problem.metrics}; enumerate_front takes more")
    found = _native.inner_search.exact_front_cpu(problem.native(), most)
    return None if found is None else _front(problem, found)


def _front(problem: Problem, found: tuple[bytes, bytes]) -> tuple[Genotypes, Values]:
    values = np.frombuffer(found[0], np.float64).reshape(-1, problem.metrics)
    return np.frombuffer(found[1], np.uint16).reshape(-1, problem.layers), values


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else max(1, threads)
