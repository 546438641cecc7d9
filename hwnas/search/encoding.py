"""Encoding: genotypes and what is known of them as blocks of numbers, for surrogates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.search.admission import Admission
from hwnas.space import Genotype

Array = NDArray[np.float32]


class Encoding:
    """Blocks: the options as one-hot, the logarithm of each metric, and each view's counts.

    The columns of a view grow with the labels that are met: earlier rows have zeros there.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._sizes = [len(c.options) for c in admission.space.choices]
        traits = admission.traits(admission.fallback)
        self._metrics, self._views = sorted(traits.metrics), sorted(traits.counts)
        self._columns: dict[str, dict[str, int]] = {view: {} for view in self._views}

    def __call__(self, genotypes: Sequence[Genotype]) -> list[Array]:
        """The blocks [rows, features] of these genotypes."""
        options = np.array(genotypes, dtype=np.int64).reshape(len(genotypes), len(self._sizes))
        known = [self.admission.traits(g) for g in genotypes]
        blocks = [np.concatenate([np.eye(size)[column] for size, column in zip(self._sizes, options.T, strict=True)], 1)]
        blocks += [np.log(np.maximum([[t.metrics[m]] for t in known], 1e-9)) for m in self._metrics]
        for view in self._views:
            columns = self._columns[view]
            found = [
                (row, columns.setdefault(label, len(columns)), count)
                for row, traits in enumerate(known)
                for label, count in traits.counts[view].items()
            ]
            counts = np.zeros((len(genotypes), len(columns)))
            if found:
                at, label, count = np.array(found).T
                counts[at, label] = count
            blocks.append(counts)
        return [block.astype(np.float32) for block in blocks]
