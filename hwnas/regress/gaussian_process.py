"""Gaussian process regression with a sum of given kernels, whose weights are those of the highest marginal likelihood.

    y ~ N(0, sum_j a_j K_j + noise I),  log a_j and log noise with a wide normal prior around where they start

Rasmussen and Williams 2006, equations 2.30 and 5.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

Array = NDArray[np.float64]

WIDTH = 3.0  # of the prior of a logarithm
REACH = 12.0  # how far a logarithm may go from its start
JITTER = 1e-10


@dataclass(frozen=True)
class KernelSum:
    """The posterior mean at new points is `sum_j amplitudes[j] * K_j(new, fitted) @ weights`."""

    amplitudes: Array  # [kernels], variances
    noise: float  # variance
    weights: Array  # [n]


def fit_kernels(grams: Sequence[Array], y: Array, amplitudes: Sequence[float], noise: float) -> KernelSum:
    """grams [n, n] each, y [n] of mean zero; amplitudes and noise are where the search begins, all positive."""
    if not len(y) or any(gram.shape != (len(y), len(y)) for gram in grams) or len(amplitudes) != len(grams):
        raise ValueError(f"fit_kernels needs a gram matrix of {len(y)} samples for every amplitude")
    begin = np.log(np.array([*amplitudes, noise]))
    matrices = [*grams, np.eye(len(y))]

    def objective(logarithms: Array) -> tuple[float, Array]:
        covariance = _covariance(matrices, np.exp(logarithms))
        factor = cho_factor(covariance, lower=True)
        inverse = cho_solve(factor, np.eye(len(y)))
        weights = inverse @ y
        away = (logarithms - begin) / WIDTH
        value = 0.5 * y @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
        slope = [
            0.5 * np.exp(s) * ((inverse * matrix).sum() - weights @ matrix @ weights)
            for s, matrix in zip(logarithms, matrices, strict=True)
        ]
        return float(value), np.array(slope) + away / WIDTH

    bounds = [(s - REACH, s + REACH) for s in begin]
    found = np.exp(minimize(objective, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x)
    weights = cho_solve(cho_factor(_covariance(matrices, found), lower=True), y)
    return KernelSum(found[:-1], float(found[-1]), np.asarray(weights))


def squared_exponential(x: Array, z: Array, length: float) -> Array:
    """exp(-|x_i - z_j|^2 / (2 length^2)); x [n, d], z [m, d]."""
    squares = (x**2).sum(1)[:, None] + (z**2).sum(1) - 2 * x @ z.T
    return np.asarray(np.exp(-np.maximum(squares, 0.0) / (2 * length**2)))


def standardised(x: Array) -> Array:
    """Columns of mean zero and deviation one over the root of their number, so that lengths mean the same for any number."""
    spread = x.std(0)
    return np.asarray((x - x.mean(0)) / np.where(spread > 0, spread, 1.0) / np.sqrt(x.shape[1]))


def _covariance(matrices: Sequence[Array], scales: Array) -> Array:
    total = sum(scale * matrix for scale, matrix in zip(scales, matrices, strict=True))
    covariance: Array = np.asarray(total)
    ridge: Array = JITTER * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return covariance + ridge
