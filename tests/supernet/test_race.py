"""The race's promise, on answers drawn at random, and its rules on answers set by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.supernet.race import Race, shuffled


def run(race: Race, right: np.ndarray) -> tuple[list[int], int]:
    """Who finishes, and how many answers were looked at."""
    alive, start, looked = np.arange(len(right)), 0, 0
    images = right.shape[1]
    for end in race.ends(images):
        looked += len(alive) * (end - start)
        if end < images:
            alive = alive[race.survivors(right[alive, :end], images)]
        start = end
    race.finish(right[alive])
    return alive.tolist(), looked


def answers(rng: np.random.Generator, accuracies: np.ndarray, images: int) -> np.ndarray:
    """Networks agree more than chance would have it: images are hard or easy for all of them."""
    hardness = rng.random(images)
    noise = rng.normal(0, 0.15, (len(accuracies), images))
    return hardness + noise < accuracies[:, None]


def test_the_best_is_stopped_no_more_often_than_stated_and_work_is_saved():
    rng = np.random.default_rng(0)
    lost, looked, whole = 0, 0, 0
    for _ in range(400):
        right = answers(rng, rng.uniform(0.4, 0.7, 40), 400)
        order = rng.permutation(400)
        alive, seen = run(Race(error=0.1), right[:, order])
        best = right.sum(1).max()
        lost += not any(right[i].sum() == best for i in alive)
        looked, whole = looked + seen, whole + right.size
    assert lost <= 0.1 * 400
    assert looked < 0.8 * whole


def test_equals_are_hardly_ever_stopped():
    """No candidate is better than another: whoever is stopped is stopped by mistake, and one of 40 may be in a race in ten."""
    rng = np.random.default_rng(1)
    stopped = sum(40 - len(run(Race(error=0.1), answers(rng, np.full(40, 0.6), 400))[0]) for _ in range(100))
    assert stopped <= 100 * 40 * 0.1
    first = sum(0 not in run(Race(error=0.1), answers(rng, np.full(40, 0.6), 400))[0] for _ in range(100))
    assert first <= 10


@given(images=st.integers(1, 300), looks=st.integers(1, 9))
def test_looks_double_and_end_with_all_images(images, looks):
    ends = Race(looks=looks).ends(images)
    assert ends == sorted(set(ends))
    assert ends[-1] == images
    assert all(e in {max(1, images >> i) for i in range(looks + 1)} for e in ends)
    assert len(ends) <= looks + 1


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 60))
def test_somebody_always_goes_on_and_duplicates_share_their_fate(seed, count, seen):
    right = np.random.default_rng(seed).random((count, seen)) < 0.5
    alive = set(Race(error=0.99, looks=1).survivors(np.concatenate([right, right]), 2 * seen).tolist())
    assert alive
    assert all((i in alive) == (i + count in alive) for i in range(count))


def test_whoever_cannot_catch_up_is_stopped():
    right = np.zeros((2, 90), bool)
    right[0, :11] = True
    assert Race(error=1e-9).survivors(right, 100).tolist() == [0]  # 11 behind, 10 left
    assert Race(error=1e-9).survivors(right, 101).tolist() == [0, 1]


def test_the_best_so_far_stops_later_batches():
    rng = np.random.default_rng(2)
    race = Race()
    assert run(race, np.ones((1, 200), bool))[0] == [0]
    alone = answers(rng, np.array([0.3]), 200)
    assert run(Race(), alone)[0] == [0]
    assert run(race, alone)[0] == []
    assert race.incumbent.all()


def test_an_order_for_each_seed():
    assert sorted(shuffled(50, 1)) == list(range(50))
    assert shuffled(50, 1).tolist() == shuffled(50, 1).tolist() != shuffled(50, 2).tolist()


@pytest.mark.parametrize(("error", "looks"), [(0, 4), (1, 4), (-0.1, 4), (0.1, 0)])
def test_what_is_no_race(error, looks):
    with pytest.raises(UserError):
        Race(error=error, looks=looks)
