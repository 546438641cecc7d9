"""A new curve from a few of its points, given whole curves of its family: latencies on a new device, given other devices.

All in logarithms. The new curve f over points with known curves p_d and features x is one of a mixture of Gaussian processes:

    f = offset + centre + sum_k w_k (k-th principal direction of the known curves) + v . x,    y = f + noise
    centre: the mean of the known curves, or one of them;    w ~ N(0, spread^2),    v ~ N(0, own^2)

with the offset unknown, and each combination of centre, spread, own and noise weighted by how well it explains the points
(Bayesian model averaging, Hoeting et al. 1999). So a device that is like a known one is recognised by few points, and one that
is like none is a blend of them, with a part of its own. The posterior mean is affine in p_d and x, and kept as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from hwnas.regress.gaussian_process import squared_exponential, standardised

Array = NDArray[np.float64]
Index = NDArray[np.intp]

OFFSET = 3.0  # prior deviation of the offset: a factor of twenty either way
SPREADS = (1.0, 0.3, 0.1)
OWNS = (0.003, 0.03)  # variance of the own part, as a share of the known curves' variance
NOISES = (0.0005, 0.002, 0.008, 0.03)  # variances: 2 to 17 %
CHOICE = (1.0, 0.02, 0.003)  # spread, own and noise with which points are chosen
DIRECTIONS = 40  # of the features, at most

LENGTH, BENT = 2.0, 0.3  # of a known curve over standardised features: length and weight of what is not linear
RATIOS = np.logspace(-4, 1, 21)


@dataclass(frozen=True)
class Inferred:
    """f(point) = constant + known_weights . p(point) + feature_weights . x(point).

    `deviation`: of y around it, at the points that were asked for.
    """

    constant: float
    known_weights: Array  # [known curves]
    feature_weights: Array  # [features], of x as it was given
    deviation: Array  # [asked]

    def at(self, known: Array, x: Array) -> Array:
        """known [curves, n], x [n, features] -> [n]"""
        return np.asarray(self.constant + self.known_weights @ known + x @ self.feature_weights)


class Family:
    """known [curves, points] in logarithms, x [points, features]."""

    def __init__(self, known: Array, x: Array) -> None:
        if known.ndim != 2 or len(known) < 2 or known.shape[1] != len(x):
            raise ValueError("a family has at least two known curves, over the points of x")
        self.known = known
        self._offsets = known.mean(1)
        centred = known - self._offsets[:, None]
        mean = centred.mean(0)
        u, _, _ = np.linalg.svd(centred - mean, full_matrices=False)
        count = len(known)
        # Each basis function is affine in (1, p, x): its coefficients stand in a column.
        project = (np.eye(count) - 1 / count) @ u / np.sqrt(count - 1)  # [curves, directions]
        self._directions = np.vstack([-self._offsets @ project, project])
        variance = float(((centred - mean) ** 2).sum(0).mean() / (count - 1))
        spread = x.std(0)
        scale = np.where(spread > 0, spread, np.inf)
        _, values, vt = np.linalg.svd((x - x.mean(0)) / scale, full_matrices=False)
        vt = vt[:DIRECTIONS][values[:DIRECTIONS] > 1e-9 * max(values.max(initial=0.0), 1e-300)]
        loading = (vt / scale).T  # [features, kept]
        size = np.sqrt(max((((x - x.mean(0)) @ loading) ** 2).sum(1).mean(), 1e-300) / max(variance, 1e-12))
        self._features = np.vstack([-x.mean(0) @ loading, loading]) / size  # own variance as a share of the curves'
        self._centres = [np.append(-self._offsets.mean(), np.full(count, 1 / count))]
        self._centres += [np.append(-self._offsets[d], np.eye(count)[d]) for d in range(count)]
        ones = np.ones((len(x), 1))
        self._by_direction = np.hstack([ones, known.T]) @ self._directions
        self._by_feature = np.hstack([ones, x]) @ self._features
        self._by_centre = np.hstack([ones, known.T]) @ np.array(self._centres).T

    def _basis(self, spread: float, own: float, index: Index) -> Array:
        """[points, basis functions], scaled so that their weights are standard normal."""
        directions, parts = self._by_direction[index], self._by_feature[index]
        return np.hstack([np.full((len(directions), 1), OFFSET), spread * directions, np.sqrt(own) * parts])

    def choose(self, count: int, among: Index) -> Index:
        """Points to look at, one after another: each the one that lowers the mean variance of all points among them most.

        A-optimal design (Atkinson, Donev and Tobias 2007, section 10.1), greedily; the first n of more are those for n.
        """
        spread, own, noise = CHOICE
        basis = self._basis(spread, own, among)
        covariance, moments = np.eye(basis.shape[1]), basis.T @ basis / len(basis)
        chosen: list[int] = []
        for _ in range(min(count, len(among))):
            reached = basis @ covariance
            gain = ((reached @ moments) * reached).sum(1) / ((reached * basis).sum(1) + noise)
            gain[chosen] = -np.inf
            best = int(np.argmax(gain))
            chosen.append(best)
            column = reached[best]
            covariance = covariance - np.outer(column, column) / (basis[best] @ column + noise)
        return np.asarray(among)[chosen]

    def infer(self, index: Index, y: Array, asked: Index | None = None) -> Inferred:
        """The new curve, in logarithms, from its values y at some points, and how sure it is at the points asked for."""
        asked = np.empty(0, np.intp) if asked is None else asked
        if len(index) != len(y) or not len(y):
            raise ValueError("infer needs a value for each point, and at least one")
        base = self._offsets.mean()
        residuals = y[:, None] - base - self._by_centre[index]  # [n, centres]
        prior = np.log(np.append(0.5, np.full(len(self.known), 0.5 / len(self.known))))
        found = []
        for spread, own, noise in product(SPREADS, OWNS, NOISES):
            basis = self._basis(spread, own, index)
            factor = np.linalg.cholesky(basis @ basis.T + noise * np.eye(len(y)))
            white = solve_triangular(factor, residuals, lower=True)
            likelihood = -np.log(np.diag(factor)).sum() - 0.5 * (white**2).sum(0) + prior
            weights = basis.T @ solve_triangular(factor.T, white, lower=False)  # [basis functions, centres]
            found.append((likelihood, weights, spread, own, noise, factor, basis))
        best = max(float(f[0].max()) for f in found)
        total = sum(float(np.exp(f[0] - best).sum()) for f in found)
        constant, known, features = base, np.zeros(len(self.known)), np.zeros(len(self._features) - 1)
        second = np.zeros(len(asked))  # mixture's mean square around the base
        mean = np.zeros(len(asked))
        for likelihood, weights, spread, own, noise, factor, basis in found:
            share = np.exp(likelihood - best) / total  # [centres]
            if share.sum() < 1e-4:
                continue
            mixed = weights @ share
            split = 1 + self._directions.shape[1]
            affine = self._directions @ (spread * mixed[1:split]) + np.array(self._centres).T @ share
            own_part = self._features @ (np.sqrt(own) * mixed[split:])
            constant += OFFSET * mixed[0] + affine[0] + own_part[0]
            known += affine[1:]
            features += own_part[1:]
            everywhere, centres = self._basis(spread, own, asked), self._by_centre[asked]
            explained = solve_triangular(factor, basis @ everywhere.T, lower=True)
            variance = (everywhere**2).sum(1) - (explained**2).sum(0) + noise
            mean += centres @ share + everywhere @ mixed
            apart = (centres + everywhere @ weights) ** 2 @ share
            second += share.sum() * np.maximum(variance, 0) + apart
        return Inferred(float(constant), known, features, np.sqrt(np.maximum(second - mean**2, 1e-12)))


def complete(x: Array, samples: Sequence[tuple[Index, Array]]) -> Array:
    """Known curves at all points, [curves, points], each from values at some points, by a Gaussian process over x.

    The kernel is linear plus a squared exponential of standardised features; the noise is each curve's own, by marginal
    likelihood. Curves that were sampled at the same points share the work.
    """
    z = standardised(x)
    curves = np.empty((len(samples), len(x)))
    shared: dict[bytes, tuple[Array, Array, Array]] = {}
    for curve, (index, y) in zip(curves, samples, strict=True):
        if len(index) != len(y) or len(y) < 2:
            raise ValueError("a known curve needs two or more values, one for each of its points")
        key = np.asarray(index).tobytes()
        if key not in shared:
            gram = z[index] @ z[index].T + BENT * squared_exponential(z[index], z[index], LENGTH)
            shared = {key: (*np.linalg.eigh(gram), z @ z[index].T + BENT * squared_exponential(z, z[index], LENGTH))}
        values, vectors, reach = shared[key]
        projected = vectors.T @ (y - y.mean())
        likelihoods, weights = [], []
        for ratio in RATIOS:
            variances = np.maximum(values, 0) + ratio
            amplitude = max(float((projected**2 / variances).mean()), 1e-300)
            likelihoods.append(-0.5 * (len(y) * np.log(amplitude) + np.log(variances).sum()))
            weights.append(projected / variances)
        curve[:] = y.mean() + reach @ (vectors @ weights[int(np.argmax(likelihoods))])
    return curves
