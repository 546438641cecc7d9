"""Two-way model: y = row + column + noise, from any set of cells, in a fit that single wild cells cannot pull away.

Least squares with Huber's weights (Huber 1964): beyond `TUNING` deviations a residual counts by its size, not by its square.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr

TUNING = 1.345  # in standard deviations: 95 % efficient where the noise is normal
ROUNDS = 10


def two_way(
    rows: NDArray[np.intp], columns: NDArray[np.intp], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Effects of all rows and of all columns, from cells (rows[k], columns[k]) of value y[k]; numbered from 0, none left out.

    A constant may move from the rows to the columns: the effects of least norm are returned.
    """
    cells, height = np.arange(len(y)), int(rows.max()) + 1
    width = int(columns.max()) + 1
    where = np.concatenate([cells, cells]), np.concatenate([rows, height + columns])
    design = csr_array((np.ones(2 * len(y)), where), shape=(len(y), height + width))
    weight = np.ones(len(y))
    effects = np.zeros(height + width)
    for _ in range(ROUNDS):
        root = np.sqrt(weight)
        effects = lsqr(design * root[:, None], y * root, atol=1e-12, btol=1e-12, x0=effects)[0]
        residual = np.abs(y - design @ effects)
        deviation = 1.4826 * float(np.median(residual))
        if deviation <= 1e-12:
            break
        weight = np.minimum(1.0, TUNING * deviation / np.maximum(residual, 1e-300))
    return effects[:height], effects[height:]
