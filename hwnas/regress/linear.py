"""Linear regression in relative error, with coefficients that cannot be negative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NonNegativeLinear:
    """y ~ x @ coefficients; `left_out` are the fit's predictions of each sample from all the others."""

    coefficients: Array  # [features]
    left_out: Array  # [samples]

    def predict(self, x: Array) -> Array:
        """[n, features] -> [n]"""
        result: Array = x @ self.coefficients
        return result


def fit_nonnegative(x: Array, y: Array) -> NonNegativeLinear:
    """Minimises sum_i ((x_i @ b - y_i) / y_i)^2 over b >= 0 (Lawson and Hanson 1974), x [n, features], y [n] positive."""
    if len(x) != len(y) or len(y) < 2 or np.any(y <= 0):
        raise ValueError(f"fit_nonnegative needs two or more samples with positive targets, got {len(y)}")
    left_out = np.array([x[i] @ _solve(np.delete(x, i, 0), np.delete(y, i)) for i in range(len(y))])
    return NonNegativeLinear(_solve(x, y), left_out)


def _solve(x: Array, y: Array) -> Array:
    relative = x / y[:, None]
    scale = np.maximum(np.abs(relative).max(0), 1e-300)  # columns of one size, so that the solver's tolerance fits all
    solution: Array = nnls(relative / scale, np.ones(len(y)))[0] / scale
    return solution
