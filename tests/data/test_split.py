"""Splits of random label counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from forms import (
    balanced,
    fuzz,
    splits,
    stored,
)
from hypothesis import given
from hypothesis import strategies as st

from hwnas.data import load_data
from hwnas.data.split import choose, quotas


@fuzz
@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    seed=st.integers(0, 2**40),
    validation=st.floats(0.01, 0.4),
    limit=st.none() | st.integers(12, 200),
    own_test=st.booleans(),
)
def test_splits_are_disjoint_and_hold_every_class(
    tmp_path: Path, counts: list[int], seed: int, validation: float, limit: int | None, own_test: bool
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(labels), dtype=np.float32)[:, None]  # image i is the number i
    test = {"x_test": number[:9], "y_test": labels[:9]} if own_test else {}
    np.savez(tmp_path / "a.npz", x_train=number, y_train=labels, **test)
    data = load_data(str(tmp_path / "a.npz"), seed=seed, validation=validation, limit=limit)
    parts = splits(data)[:2] if own_test else splits(data)
    found = [stored(s, data).round().astype(int)[:, 0] for s in parts]
    together = np.concatenate(found)
    assert len(set(together)) == len(together)
    for numbers, split in zip(found, parts, strict=True):
        np.testing.assert_array_equal(labels[numbers], split.labels)
        assert np.bincount(split.labels, minlength=len(counts)).min() >= 1
    searched = len(found[0]) + len(found[1])
    if limit is None:
        assert len(together) == len(labels)
    else:
        assert searched <= limit


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_quotas_are_fair(counts: list[int], draw: st.DataObject) -> None:
    total = draw.draw(st.integers(len(counts), sum(counts)))
    result = quotas(np.asarray(counts), total, 1)
    exact = np.asarray(counts) * total / sum(counts)
    assert result.sum() == total
    assert (result >= 1).all()
    assert (result <= counts).all()
    if exact.min() >= 1:
        assert np.abs(result - exact).max() < 1


def test_choose_returns_a_partition() -> None:
    chosen, rest = choose(balanced(30), 10, 1, (0, 0))
    assert sorted([*chosen, *rest]) == list(range(30))
    assert len(chosen) == 10
