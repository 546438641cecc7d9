"""Family and complete against closed forms and families that the test invents."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.regress.transfer import Family, complete

RNG = np.random.default_rng(0)
X = RNG.integers(0, 3, (150, 6)).astype(float)
BASIS = np.log(1.0 + X @ RNG.random((6, 3)))  # what latencies are made of


def curves(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (count, 1)) + rng.normal(1, 0.3, (count, 3)) @ BASIS.T


def test_a_member_of_the_family_is_known_from_few_points():
    family, new = Family(curves(8, 1), X), curves(1, 2)[0]
    chosen = family.choose(6, np.arange(len(X)))
    found = family.infer(chosen, new[chosen], np.arange(len(X)))
    assert np.abs(found.at(family.known, X) - new).mean() < 0.05
    alone = np.abs(new - new[chosen].mean()).mean()
    assert np.abs(found.at(family.known, X) - new).mean() < 0.2 * alone
    assert (found.deviation > 0).all()


def test_a_known_device_is_recognised():
    known = curves(8, 3)
    known[4] += RNG.normal(0, 0.5, len(X))  # like no other
    family = Family(known, X)
    chosen = family.choose(5, np.arange(len(X)))
    found = family.infer(chosen, known[4][chosen] + 1.5)
    assert np.abs(found.at(known, X) - known[4] - 1.5).mean() < 0.05
    assert found.known_weights.argmax() == 4


def test_the_scale_of_a_device_moves_only_the_constant_a_little():
    family = Family(curves(6, 4), X)
    index, y = np.arange(10), curves(1, 5)[0][:10]
    one, two = family.infer(index, y), family.infer(index, y + 1.0)
    shift = two.at(family.known, X) - one.at(family.known, X)
    assert shift == pytest.approx(np.ones(len(X)), abs=0.05)


def test_the_choice_is_greedy_nested_and_distinct():
    family, among = Family(curves(8, 6), X), np.arange(20, 120)
    chosen = family.choose(12, among)
    assert len(set(chosen.tolist())) == 12
    assert set(chosen.tolist()) <= set(among.tolist())
    assert family.choose(5, among).tolist() == chosen[:5].tolist()
    assert sorted(family.choose(500, among[:7]).tolist()) == among[:7].tolist()


def test_the_first_choice_lowers_the_mean_variance_most():
    """Against the definition: the posterior covariance of every candidate, inverted in full."""
    family, among = Family(curves(5, 7), X[:, :2]), np.arange(30)
    basis = family._basis(1.0, 0.02, among)
    left = []
    for row in basis:
        posterior = np.linalg.inv(np.eye(basis.shape[1]) + np.outer(row, row) / 0.003)
        left.append(np.einsum("ni,ij,nj->n", basis, posterior, basis).mean())
    assert family.choose(1, among)[0] == among[int(np.argmin(left))]


def test_intervals_hold_what_they_should():
    rng, inside = np.random.default_rng(8), []
    for seed in range(20):
        known = curves(8, 100 + seed)
        new = curves(1, 200 + seed)[0] + rng.normal(0, 0.05, len(X))
        family = Family(known, X)
        chosen = family.choose(10, np.arange(len(X)))
        found = family.infer(chosen, new[chosen], np.arange(len(X)))
        inside.append(np.abs(found.at(known, X) - new) <= 1.645 * found.deviation)
    assert 0.8 < np.mean(inside) < 0.99


def test_complete_fills_in_what_was_not_sampled():
    true = curves(4, 9)
    rng = np.random.default_rng(1)
    shared = rng.permutation(len(X))[:80]
    samples = [(shared, true[0][shared]), (shared, true[1][shared])]
    samples += [(own := rng.permutation(len(X))[:80], true[d][own]) for d in (2, 3)]
    found = complete(X, samples)
    for known, expected in zip(found, true, strict=True):
        assert np.abs(known - expected).mean() < 0.2 * expected.std()
    assert complete(X, samples[:1])[0] == pytest.approx(found[0], rel=1e-9)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="two known curves"):
        Family(np.zeros((1, 150)), X)
    with pytest.raises(ValueError, match="two known curves"):
        Family(np.zeros((3, 149)), X)
    family = Family(curves(3, 0), X)
    with pytest.raises(ValueError, match="a value for each point"):
        family.infer(np.arange(3), np.zeros(2))
    with pytest.raises(ValueError, match="a value for each point"):
        family.infer(np.arange(0), np.zeros(0))
    with pytest.raises(ValueError, match="two or more values"):
        complete(X, [(np.arange(1), np.zeros(1))])
