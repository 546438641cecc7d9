"""Warm starts: what a finished search liked comes first, if the budget admits it; and it helps."""

from __future__ import annotations

import random

import pytest

from hwnas.errors import UserError
from hwnas.search.admission import Admission
from hwnas.search.warm import WarmAdmission, prior_genotypes
from hwnas.spaces import make_space
from hwnas.storage import Journal

SPACE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")


def history(path, rows):
    journal = Journal.create(path, {"format": "hwnas history 1"})
    for genotype, key, accuracy, loss in rows:
        journal.append({"genotype": list(genotype), "key": key, "accuracy": accuracy, "loss": loss})
    return path


def test_the_best_come_first_and_each_network_once(tmp_path):
    rows = [((0,) * 6, "a", 0.5, 1.0), ((1,) * 6, "b", 0.9, 1.0), ((2,) * 6, "b", 0.9, 0.5), ((3,) * 6, "c", 0.9, 0.7)]
    assert prior_genotypes(history(tmp_path / "h", rows), SPACE) == [(2,) * 6, (3,) * 6, (0,) * 6]


@pytest.mark.parametrize("rows", [[], [((0,) * 5, "a", 0.5, 1.0)], [((9,) * 6, "a", 0.5, 1.0)], [((0,) * 6, "a", "good", 1.0)]])
def test_what_is_no_history_of_the_space_is_refused(tmp_path, rows):
    with pytest.raises(UserError) as caught:
        prior_genotypes(history(tmp_path / "h", rows), SPACE)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        prior_genotypes(tmp_path / "nowhere", SPACE)


def test_samples_are_the_admitted_prior_then_its_neighbours_now_and_then():
    admit = lambda g: float(g[0] == 4)  # noqa: E731
    prior = [(4, 1, 1, 1, 1, 1), (3, 3, 3, 3, 3, 3), (4, 2, 2, 2, 2, 2), (0, 1, 2, 3, 4, 0)]
    warm = WarmAdmission(SPACE, admit, (0,) * 6, prior, first=2, weight=0.5)
    rng = random.Random(0)
    assert [warm.sample(rng) for _ in range(2)] == [(3, 3, 3, 3, 3, 3), (0, 1, 2, 3, 4, 0)]
    later = [warm.sample(rng) for _ in range(600)]
    assert all(g[0] != 4 for g in later)
    near = [min(sum(a != b for a, b in zip(g, p, strict=True)) for p in warm.best) <= 1 for g in later]
    assert 0.4 < sum(near) / len(near) < 0.6


def test_a_warm_random_search_is_better_than_a_cold_one_on_a_related_landscape():
    """The best of 20 samples; the prior comes from a landscape whose correlation with this one is about 0.8."""
    gains = []
    for seed in range(200):
        rng = random.Random(seed)
        there = [[rng.gauss(0, 1) for _ in c.options] for c in SPACE.choices]
        here = [[0.8 * v + 0.6 * rng.gauss(0, 1) for v in row] for row in there]
        worth = lambda g, table: sum(row[o] for row, o in zip(table, g, strict=True))  # noqa: E731
        seen = sorted((SPACE.sample(rng) for _ in range(60)), key=lambda g: -worth(g, there))
        free = lambda g: 0.0  # noqa: E731
        draws = [
            max(worth(a.sample(r), here) for r in [random.Random(seed)] for _ in range(20))
            for a in (WarmAdmission(SPACE, free, (0,) * 6, seen), Admission(SPACE, free, (0,) * 6))
        ]
        gains.append(draws[0] - draws[1])
    mean = sum(gains) / len(gains)
    deviation = (sum((g - mean) ** 2 for g in gains) / (len(gains) - 1)) ** 0.5
    assert mean > 3 * deviation / len(gains) ** 0.5
