"""Linear regression in relative error, with coefficients that cannot be negative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]


def fit_nonnegative(x: Array, y: Array) -> Array:
    """The b >= 0, [features], that minimises sum_i ((x_i @ b - y_i) / y_i)^2; x [n, features], y [n] positive.

    Lawson and Hanson 1974, chapter 23.
    """
    if len(x) != len(y) or len(y) < 2 or np.any(y <= 0):
        raise ValueError(f"fit_nonnegative needs two or more samples with positive targets, got {len(y)}")
    relative = x / y[:, None]
    scale = np.maximum(np.abs(relative).max(0), 1e-300)  # columns of one size, so that the solver's tolerance fits all
    solution: Array = nnls(relative / scale, np.ones(len(y)))[0] / scale
    return solution
