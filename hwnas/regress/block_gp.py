"""Gaussian process over blocks of features: a block is a view of the inputs and has one relevance.

With d^2(a, b) = sum_g w_g |a_g - b_g|^2 over the blocks g, the covariance is s^2 (Matern_5/2(d) + m) and the noise s^2 v
(Rasmussen and Williams 2006, 2.7, 4.2 and 5.4). w, v and m maximise the marginal likelihood times log-normal priors; s^2 is
profiled out. Inputs arrive as squared distances per block, which callers update a column at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

Array = NDArray[np.float64]

_RELEVANCE = (-1.0, 1.5)  # mean and standard deviation of the prior of log w, for blocks of unit variance
_NOISE = (float(np.log(0.03)), 1.5)  # of log v
_MEAN = (0.0, 2.0)  # of log m


@dataclass(frozen=True)
class BlockGP:
    """`parameters`: log w for each block, log v, log m."""

    parameters: Array  # [blocks + 2]
    factor: Array  # [n, n], lower Cholesky factor of the covariance over s^2
    weights: Array  # [n]
    scale: float  # s^2
    posterior: float  # its logarithm, up to a constant

    def predict(self, distances: NDArray[np.floating]) -> tuple[Array, Array]:
        """Mean [m] and standard deviation [m] of noisy targets at squared distances [blocks, n, m] from the fitted points."""
        noise, mean = np.exp(self.parameters[-2:])
        cross = _covariance(distances, self.parameters)
        explained = solve_triangular(self.factor, cross, lower=True, check_finite=False)
        variance = 1 + mean + noise - np.einsum("nm,nm->m", explained, explained)
        return self.weights @ cross, np.sqrt(self.scale * np.maximum(variance, noise))


def fit_block_gp(
    distances: Array, y: Array, rng: np.random.Generator, start: BlockGP | None = None, proposals: int = 60
) -> BlockGP:
    """Fits targets y [n] of zero mean at squared distances [blocks, n, n] by random ascent from `start`'s parameters."""
    if distances.shape[1:] != (len(y), len(y)) or len(y) < 2:
        raise ValueError(f"fit_block_gp needs distances [blocks, n, n] for n >= 2 targets, got {distances.shape}, {len(y)}")
    parameters = start.parameters if start else np.array([_RELEVANCE[0]] * len(distances) + [_NOISE[0], _MEAN[0]])
    best = _condition(distances, y, parameters)
    for _ in range(proposals):
        moved = rng.random(len(parameters)) < 0.4
        step = rng.choice((0.3, 1.0)) * rng.normal(size=len(parameters)) * moved
        proposal = _condition(distances, y, best.parameters + step)
        if proposal.posterior > best.posterior:
            best = proposal
    return best


def _covariance(distances: NDArray[np.floating], parameters: Array) -> Array:
    relevance, mean = np.exp(parameters[:-2]), float(np.exp(parameters[-1]))
    root = np.zeros(distances.shape[1:], distances.dtype)
    for weight, block in zip(relevance, distances, strict=True):
        root += float(5 * weight) * block
    np.sqrt(root, out=root)
    covariance: Array = ((1 + root + root * root / 3) * np.exp(-root)).astype(np.float64)
    covariance += mean
    return covariance


def _condition(distances: Array, y: Array, parameters: Array) -> BlockGP:
    n = len(y)
    covariance = _covariance(distances, parameters)
    covariance[np.diag_indices(n)] += np.exp(parameters[-2]) + 1e-8
    try:
        factor: Array = cholesky(covariance, lower=True, check_finite=False)
    except LinAlgError:  # not positive definite in these digits
        return BlockGP(parameters, np.eye(n), np.zeros(n), 1.0, -np.inf)
    weights = cho_solve((factor, True), y, check_finite=False)
    scale = max(float(y @ weights) / n, 1e-12)
    priors = [_RELEVANCE] * (len(parameters) - 2) + [_NOISE, _MEAN]
    centre, width = np.array(priors).T
    prior = -0.5 * np.sum(((parameters - centre) / width) ** 2)
    likelihood = -0.5 * n * np.log(scale) - np.log(np.diag(factor)).sum()
    return BlockGP(parameters, factor, weights, scale, float(likelihood + prior))
