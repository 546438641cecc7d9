"""fit_nonnegative against scipy's bounded optimiser and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from hwnas.regress.linear import fit_nonnegative


def problem(seed: int, n: int, k: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (n, k)) * 10.0 ** rng.integers(-4, 5, k)  # columns of very different sizes
    b = rng.uniform(0.5, 2, k) / x.mean(0) * (rng.random(k) < 0.7)
    b[0] = 1 / x[:, 0].mean()
    y = x @ b * (1 + noise * rng.uniform(-1, 1, n))
    return x, y, b


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(6, 30), st.integers(1, 5), st.sampled_from([0.01, 0.3, 0.9]))
def test_against_scipy(seed, n, k, noise):
    x, y, _ = problem(seed, n, k, noise)
    coefficients = fit_nonnegative(x, y)
    assert (coefficients >= 0).all()
    size = np.abs(x / y[:, None]).max(0)
    reference = lsq_linear(x / y[:, None] / size, np.ones(n), (0, np.inf), method="bvls", tol=1e-14)
    loss = ((x @ coefficients / y - 1) ** 2).sum()
    assert loss == pytest.approx(2 * reference.cost, rel=1e-8, abs=1e-20)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(6, 30), st.integers(1, 5), st.sampled_from([0.01, 0.3, 0.9]))
def test_the_conditions_of_karush_kuhn_and_tucker(seed, n, k, noise):
    """The gradient is zero where a coefficient is free and not negative where it is held at zero."""
    x, y, _ = problem(seed, n, k, noise)
    relative = x / y[:, None]
    relative = relative / np.abs(relative).max(0)
    coefficients = fit_nonnegative(x, y)
    gradient = relative.T @ (x @ coefficients / y - 1)
    assert (gradient >= -1e-9 * n).all()
    assert np.abs(gradient[coefficients > 0]).max(initial=0) <= 1e-9 * n


@pytest.mark.parametrize("seed", range(5))
def test_exact_data_is_found_again(seed):
    x, y, b = problem(seed, 12, 4, 0.0)
    coefficients = fit_nonnegative(x, y)
    assert coefficients * x.mean(0) == pytest.approx(b * x.mean(0), rel=1e-9, abs=1e-9)


def test_one_column_in_closed_form():
    """min sum (b x/y - 1)^2: b = sum(x/y) / sum((x/y)^2)."""
    x, y = np.array([[1.0], [2.0], [4.0]]), np.array([2.0, 3.0, 9.0])
    r = x[:, 0] / y
    assert fit_nonnegative(x, y)[0] == pytest.approx(r.sum() / (r**2).sum(), rel=1e-12)


def test_what_could_only_be_fitted_with_a_negative_coefficient():
    x = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    y = np.array([3.0, 2.0, 1.0])  # 4 - x, exactly
    coefficients = fit_nonnegative(x, y)
    assert coefficients[1] == 0
    assert coefficients[0] == pytest.approx((1 / 3 + 1 / 2 + 1) / (1 / 9 + 1 / 4 + 1), rel=1e-12)


def test_the_error_is_relative():
    """Two groups that no one line fits: small targets weigh as much as large ones."""
    x = np.array([[1.0], [1000.0]])
    y = np.array([1.0, 2000.0])
    b = fit_nonnegative(x, y)[0]
    assert b == pytest.approx((1 + 0.5) / (1 + 0.25), rel=1e-12)


def test_a_column_of_zeros_is_harmless():
    x, y, _ = problem(0, 8, 2, 0.1)
    with_zeros = fit_nonnegative(np.column_stack([x, np.zeros(8)]), y)
    assert with_zeros[:2] == pytest.approx(fit_nonnegative(x, y), rel=1e-9)
    assert np.isfinite(with_zeros).all()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((1, 1)), np.ones(1)),
        (np.ones((0, 1)), np.ones(0)),
        (np.ones((3, 1)), np.ones(2)),
        (np.ones((2, 1)), np.array([1.0, 0.0])),
        (np.ones((2, 1)), np.array([1.0, -1.0])),
    ],
)
def test_what_cannot_be_fitted(x, y):
    with pytest.raises(ValueError, match="fit_nonnegative"):
        fit_nonnegative(x, y)


def test_targets_that_are_no_numbers():
    with pytest.raises(ValueError):  # noqa: PT011
        fit_nonnegative(np.ones((3, 1)), np.array([1.0, np.nan, 2.0]))
