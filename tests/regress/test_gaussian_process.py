"""fit_kernels against the textbook's formulas, its gradient's fixed point, and data drawn from the process itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from hwnas.regress.gaussian_process import fit_kernels, squared_exponential, standardised


def problem(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    linear, smooth = x @ x.T, squared_exponential(x, x, 1.0)
    y = rng.multivariate_normal(np.zeros(n), 4.0 * linear + 0.25 * smooth + 0.01 * np.eye(n))
    return x, np.stack([linear, smooth]), y


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_solve_the_system(seed):
    _, grams, y = problem(seed)
    fit = fit_kernels(list(grams), y, (1.0, 1.0), 0.1)
    covariance = np.tensordot(fit.amplitudes, grams, 1) + fit.noise * np.eye(len(y))
    assert covariance @ fit.weights == pytest.approx(y, rel=1e-4, abs=1e-4)


def test_no_neighbour_has_a_higher_posterior():
    """Against scipy's own normal density, with the normal prior of the logarithms."""
    _, grams, y = problem(1)
    start = np.log([1.0, 1.0, 0.1])
    fit = fit_kernels(list(grams), y, (1.0, 1.0), 0.1)

    def posterior(logarithms: np.ndarray) -> float:
        covariance = np.tensordot(np.exp(logarithms[:2]), grams, 1) + np.exp(logarithms[2]) * np.eye(len(y))
        prior = -0.5 * (((logarithms - start) / 3.0) ** 2).sum()
        return float(multivariate_normal.logpdf(y, np.zeros(len(y)), covariance) + prior)

    best = np.log([*fit.amplitudes, fit.noise])
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        assert posterior(best + 0.3 * direction) < posterior(best)


def test_it_predicts_what_it_was_not_shown():
    _, grams, y = problem(2, 120)
    seen, rest = slice(0, 80), slice(80, None)
    fit = fit_kernels([g[seen, seen] for g in grams], y[seen], (1.0, 1.0), 0.1)
    found = sum(a * g[rest, seen] for a, g in zip(fit.amplitudes, grams, strict=True)) @ fit.weights
    assert np.abs(found - y[rest]).mean() < 0.35 * np.abs(y[rest]).mean()
    assert fit.amplitudes[0] > fit.amplitudes[1] > fit.noise


def test_nothing_to_explain():
    _, grams, y = problem(3)
    fit = fit_kernels(list(grams), np.zeros_like(y), (1.0, 1.0), 0.1)
    assert np.abs(fit.weights).max() == 0


def test_kernels_by_hand():
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert squared_exponential(x, x[:1], 5.0)[:, 0] == pytest.approx([1.0, np.exp(-0.5)])
    z = standardised(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert z == pytest.approx(np.array([[-1.0, 0.0], [1.0, 0.0]]) / np.sqrt(2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="fit_kernels needs"):
        fit_kernels([np.eye(3)], np.ones(2), (1.0,), 0.1)
    with pytest.raises(ValueError, match="fit_kernels needs"):
        fit_kernels([np.eye(2)], np.ones(2), (1.0, 1.0), 0.1)
