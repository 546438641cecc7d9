"""The two-way fit against closed forms and against the truth that made the cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.regress.two_way import two_way


def differences(effects: np.ndarray) -> np.ndarray:
    """What the constant that may move between rows and columns does not change."""
    return effects - effects[0]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 9), extra=st.integers(0, 60), seed=st.integers(0, 2**32 - 1))
def test_cells_without_noise_are_taken_apart_exactly(height, width, extra, seed):
    rng = np.random.default_rng(seed)
    row, column = rng.normal(size=height), 3 * rng.normal(size=width)
    # the first row and the first column link everything; other cells are here or not, once or several times
    rows = np.concatenate([np.arange(height), np.zeros(width, int), rng.integers(height, size=extra)])
    columns = np.concatenate([np.zeros(height, int), np.arange(width), rng.integers(width, size=extra)])
    found_row, found_column = two_way(rows, columns, row[rows] + column[columns])
    np.testing.assert_allclose(differences(found_row), differences(row), atol=1e-7)
    np.testing.assert_allclose(differences(found_column), differences(column), atol=1e-7)
    np.testing.assert_allclose(found_row[rows] + found_column[columns], row[rows] + column[columns], atol=1e-7)


def test_a_full_table_of_tame_noise_gives_the_means():
    """Least squares of a balanced design are the means of rows and columns (Scheffe 1959); bounded noise needs no weights."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(7, 1)) + rng.normal(size=(1, 5)) + 0.1 * np.sign(rng.normal(size=(7, 5)))
    rows, columns = np.divmod(np.arange(table.size), 5)
    row, column = two_way(rows, columns, table.ravel())
    np.testing.assert_allclose(differences(row), differences(table.mean(1)), atol=0.02)
    np.testing.assert_allclose(differences(column), differences(table.mean(0)), atol=0.02)


def test_wild_cells_do_not_carry_the_fit_away():
    rng = np.random.default_rng(2)
    row, column = rng.normal(size=60), rng.normal(size=12)
    rows, columns = (index.ravel() for index in np.indices((60, 12)))
    y = row[rows] + column[columns] + 0.01 * rng.normal(size=len(rows))
    y[rng.random(len(y)) < 0.1] += 5.0
    found, _ = two_way(rows, columns, y)
    assert np.abs(differences(found) - differences(row)).max() < 0.06


@pytest.mark.parametrize("count", [1, 5])
def test_one_cell_and_equal_cells(count):
    row, column = two_way(np.zeros(count, int), np.zeros(count, int), np.full(count, 2.5))
    assert row[0] + column[0] == pytest.approx(2.5)
