"""Scores of many genotypes from a table: `fixed + sum_l table[l, genotype[l]]`, on all cores.

A predictor that gives every choice a price is such a table, and so are multiply-accumulates and parameters of a chain.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from hwnas import _native

MOST_CHOICES = 256


def score(
    table: NDArray[np.float32], genotypes: NDArray[np.uint8], fixed: float = 0.0, threads: int | None = None
) -> NDArray[np.float32]:
    """table [layers, choices], genotypes [n, layers] -> [n], in single precision, layer after layer.

    The same bits for any number of threads, by default one for each core. ValueError if a choice is not in the table.
    """
    table, genotypes = np.ascontiguousarray(table, np.float32), _check(table, genotypes)
    scores = np.empty(len(genotypes), np.float32)
    layers, choices = table.shape
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    in_range = _native.additive.score(
        table.ctypes.data, layers, choices, float(fixed), genotypes.ctypes.data, len(genotypes), scores.ctypes.data,
        max(1, threads or cores),
    )  # fmt: skip
    if not in_range:
        raise ValueError(f"a choice is below {choices}, got {int(genotypes.max())}")
    return scores


def score_reference(table: NDArray[np.float32], genotypes: NDArray[np.uint8], fixed: float = 0.0) -> NDArray[np.float64]:
    """The definition, in double precision."""
    genotypes = _check(table, genotypes)
    scores: NDArray[np.float64] = fixed + np.asarray(table, np.float64)[np.arange(len(table)), genotypes].sum(1)
    return scores


def _check(table: NDArray[np.float32], genotypes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if table.ndim != 2 or not 1 <= table.shape[1] <= MOST_CHOICES or not len(table):
        raise ValueError(f"a table is [layers, choices] with 1 to {MOST_CHOICES} choices, got {table.shape}")
    if genotypes.dtype != np.uint8 or genotypes.ndim != 2 or genotypes.shape[1] != len(table):
        raise ValueError(f"genotypes are bytes [n, {len(table)}], got {genotypes.dtype} {genotypes.shape}")
    return np.ascontiguousarray(genotypes)
