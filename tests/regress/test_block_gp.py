"""The process over blocks: predictions against scikit-learn, likelihood against the density, relevance against truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from hwnas.regress.block_gp import _condition, _covariance, fit_block_gp


def distances(a, b):
    return np.stack([((x[:, None] - y) ** 2).sum(2) for x, y in zip(a, b, strict=True)])


def blocks(n, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 3)) / 3**0.5, rng.normal(size=(n, 1)), rng.normal(size=(n, 5)) / 5**0.5]


@pytest.mark.parametrize("seed", range(4))
def test_predictions_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    seen, new = blocks(30, seed), blocks(12, seed + 100)
    y = rng.normal(size=30)
    parameters = rng.normal(size=5) * 0.7 - 0.5
    *weights, noise, mean = np.exp(parameters)
    own = _condition(distances(seen, seen), y, parameters)

    def joined(x):
        return np.concatenate([np.sqrt(w) * block for w, block in zip(weights, x, strict=True)], 1)

    kernel = own.scale * (Matern(1.0, nu=2.5) + ConstantKernel(mean) + WhiteKernel(noise))
    reference = GaussianProcessRegressor(kernel, optimizer=None, alpha=1e-8 * own.scale).fit(joined(seen), y)
    expected = reference.predict(joined(new), return_std=True)
    for found, wanted in zip(own.predict(distances(seen, new)), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_likelihood_is_the_density_at_the_best_scale():
    """Up to a constant: the difference between two sets of parameters, without their priors."""
    seen = blocks(25, 1)
    y = np.random.default_rng(2).normal(size=25)
    d = distances(seen, seen)
    logs, own = [], []
    for parameters in (np.array([-1.0, -1.0, -1.0, np.log(0.03), 0.0]), np.array([0.3, -2.0, 0.5, -1.0, 0.4])):
        found = _condition(d, y, parameters)
        covariance = _covariance(d, parameters) + (np.exp(parameters[-2]) + 1e-8) * np.eye(25)
        logs.append(multivariate_normal(np.zeros(25), found.scale * covariance).logpdf(y))
        centre, width = np.array([-1, -1, -1, np.log(0.03), 0]), np.array([1.5, 1.5, 1.5, 1.5, 2.0])
        own.append(found.posterior + 0.5 * np.sum(((parameters - centre) / width) ** 2))
        for other in (0.9, 1.1):  # the scale is the likeliest
            assert multivariate_normal(np.zeros(25), other * found.scale * covariance).logpdf(y) < logs[-1]
    assert own[0] - own[1] == pytest.approx(logs[0] - logs[1])


def test_what_does_not_matter_is_found_irrelevant_and_the_start_is_not_lost():
    seen, new = blocks(60, 5), blocks(40, 6)
    rng = np.random.default_rng(0)

    def truth(x):
        return np.sin(2 * x[1][:, 0]) + 2 * x[0][:, 0]

    y = truth(seen) + 0.05 * rng.normal(size=60)
    d = distances(seen, seen)
    fitted = fit_block_gp(d, y, np.random.default_rng(1), proposals=300)
    assert fitted.parameters[2] < min(fitted.parameters[:2]) - 1
    mean, deviation = fitted.predict(distances(seen, new))
    assert np.corrcoef(mean, truth(new))[0, 1] > 0.95
    assert np.mean(np.abs(mean - truth(new)) < 3 * deviation) > 0.9
    again = fit_block_gp(d, y, np.random.default_rng(2), fitted, proposals=0)
    assert np.array_equal(again.parameters, fitted.parameters)
    assert fit_block_gp(d, y, np.random.default_rng(2), fitted, proposals=20).posterior >= fitted.posterior


def test_equal_targets_and_equal_points_have_an_answer():
    d = np.zeros((2, 5, 5))
    for y in (np.zeros(5), np.array([1.0, -1.0, 1.0, -1.0, 0.0])):
        mean, deviation = fit_block_gp(d, y, np.random.default_rng(0)).predict(np.zeros((2, 5, 3)))
        assert np.isfinite(mean).all()
        assert (deviation > 0).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="needs distances"):
        fit_block_gp(np.zeros((2, 3, 4)), np.zeros(3), np.random.default_rng(0))
