"""The race's promise, on answers drawn at random, and its rules on answers set by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.supernet.race import Race, shuffled


def run(race: Race, right: np.ndarray, entrants: int = 0, incumbent: np.ndarray | None = None):
    """Who finishes, how many answers were looked at, and the best until now."""
    looked = 0

    def answer(which: np.ndarray, start: int, end: int) -> np.ndarray:
        nonlocal looked
        looked += len(which) * (end - start)
        return right[which, start:end]

    alive, best = race.run(answer, len(right), right.shape[1], entrants or len(right), incumbent)
    return alive.tolist(), looked, best


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
        alive, seen, _ = run(Race(error=0.1), right[:, order])
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
def test_looks_double_and_everybody_sees_the_images_in_order(images, looks):
    seen = [0]

    def answer(which, start, end):
        assert start == seen[-1] < end
        seen.append(end)
        return np.ones((len(which), end - start), bool)

    Race(looks=looks).run(answer, 3, images, 3)
    ends = seen[1:]
    assert ends[-1] == images
    assert all(e in {max(1, images >> i) for i in range(looks + 1)} for e in ends)
    assert len(ends) <= looks + 1


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 60))
def test_somebody_always_goes_on_and_duplicates_share_their_fate(seed, count, seen):
    right = np.random.default_rng(seed).random((count, seen)) < 0.5
    alive = set(Race(error=0.99, looks=1).survivors(np.concatenate([right, right]), 2 * seen, 2 * count).tolist())
    assert alive
    assert all((i in alive) == (i + count in alive) for i in range(count))


def test_whoever_cannot_catch_up_is_stopped():
    right = np.zeros((2, 90), bool)
    right[0, :11] = True
    assert Race(error=1e-9).survivors(right, 100, 2).tolist() == [0]  # 11 behind, 10 left
    assert Race(error=1e-9).survivors(right, 101, 2).tolist() == [0, 1]


def test_the_best_so_far_stops_later_heats():
    rng = np.random.default_rng(2)
    race, alone = Race(), answers(rng, np.array([0.3]), 200)
    alive, _, best = run(race, np.ones((1, 200), bool), 2)
    assert alive == [0]
    assert best.all()
    assert run(race, alone, 2)[0] == [0]
    alive, looked, best = run(race, alone, 2, best)
    assert alive == []
    assert looked < 200
    assert best.all()


def test_the_error_is_shared_out_among_all_who_entered():
    """Ten behind on the ten images that tell them apart: enough against one opponent, not against ten thousand."""
    right = np.zeros((2, 20), bool)
    right[0, :10] = True
    assert Race(error=0.05, looks=1).survivors(right, 1000, 2).tolist() == [0]
    assert Race(error=0.05, looks=1).survivors(right, 1000, 10_000).tolist() == [0, 1]


def test_an_order_for_each_seed():
    assert sorted(shuffled(50, 1)) == list(range(50))
    assert shuffled(50, 1).tolist() == shuffled(50, 1).tolist() != shuffled(50, 2).tolist()


@pytest.mark.parametrize(("error", "looks"), [(0, 4), (1, 4), (-0.1, 4), (0.1, 0)])
def test_what_is_no_race(error, looks):
    with pytest.raises(UserError):
        Race(error=error, looks=looks)
