"""The additive score against its definition, summed exactly, for every shape that has a path of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.kernels.additive import score, score_reference

EPS = float(np.finfo(np.float32).eps)


def problem(count: int, layers: int, choices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = (rng.standard_normal((layers, choices)) * 10.0 ** rng.integers(-3, 4, (layers, 1))).astype(np.float32)
    return table, rng.integers(0, choices, (count, layers), dtype=np.uint8)


def exact(table: np.ndarray, genotypes: np.ndarray, fixed: float) -> tuple[np.ndarray, np.ndarray]:
    """The definition, term by term in exact summation, and the sum of absolute values."""
    terms = [[float(np.float32(fixed)), *(float(table[layer, c]) for layer, c in enumerate(row))] for row in genotypes]
    return np.array([math.fsum(t) for t in terms]), np.array([math.fsum(map(abs, t)) for t in terms])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 70), layers=st.integers(1, 64), choices=st.integers(1, 256), seed=st.integers(0, 10**6),
    threads=st.sampled_from([1, 2, 3]),
)  # fmt: skip
def test_within_the_rounding_of_single_precision(count, layers, choices, seed, threads):
    table, genotypes = problem(count, layers, choices, seed)
    expected, size = exact(table, genotypes, 0.5)
    found = score(table, genotypes, 0.5, threads)
    assert found.dtype == np.float32
    # gamma_n of Higham: `layers` additions in single precision
    assert (np.abs(found - expected) <= layers * EPS * size).all()
    assert score_reference(table, genotypes, 0.5) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("choices", [1, 2, 15, 16, 17, 31, 32, 33, 255, 256])
@pytest.mark.parametrize("layers", [1, 3, 4, 5, 15, 16, 17, 19, 20, 32, 35, 64])
def test_layer_after_layer_to_the_bit(layers, choices):
    """Whatever instruction set and number of threads: the sum in order, in single precision."""
    table, genotypes = problem(1000 + layers, layers, choices, 7)
    genotypes[-1] = choices - 1
    expected = np.full(len(genotypes), 0.25, np.float32)
    for layer in range(layers):
        expected = expected + table[layer, genotypes[:, layer]]
    for threads in (1, 2, 5):
        assert np.array_equal(score(table, genotypes, 0.25, threads), expected)


def test_many_units_of_work():
    table, genotypes = problem(100_003, 20, 12, 3)
    expected = table[np.arange(20), genotypes].astype(np.float64).sum(1)
    assert np.abs(score(table, genotypes) - expected).max() <= 20 * EPS * np.abs(table).max() * 20
    assert np.array_equal(score(table, genotypes, threads=1), score(table, genotypes, threads=2))


@pytest.mark.parametrize("isa", ["avx512", "baseline"])
def test_the_same_bits_on_every_instruction_set(isa):
    code = (
        "import numpy as np; from hwnas.kernels.additive import score; r = np.random.default_rng(5);"
        "t = r.standard_normal((21, 23)).astype(np.float32);"
        "print(score(t, r.integers(0, 23, (99, 21), dtype=np.uint8)).tobytes().hex())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "HWNAS_CPU_ISA": isa}
    )
    rng = np.random.default_rng(5)
    table = rng.standard_normal((21, 23)).astype(np.float32)
    assert found.stdout.strip() == score(table, rng.integers(0, 23, (99, 21), dtype=np.uint8)).tobytes().hex()


def test_views_are_read_as_they_are():
    table, genotypes = problem(50, 9, 7, 1)
    wide, tall = np.repeat(genotypes, 2, axis=1)[:, ::2], np.asfortranarray(genotypes)
    assert np.array_equal(score(np.asfortranarray(table), wide), score(table, tall))
    assert np.array_equal(score(table, genotypes[::-1]), score(table, genotypes)[::-1])


@pytest.mark.parametrize("at", [(0, 0), (40, 5), (99, 19)])
@pytest.mark.parametrize("choices", [12, 16, 30, 200])
def test_a_choice_that_is_not_in_the_table_is_refused(at, choices):
    table, genotypes = problem(100, 20, choices, 2)
    genotypes[at] = choices
    with pytest.raises(ValueError, match=f"below {choices}, got {choices}"):
        score(table, genotypes)


@pytest.mark.parametrize(
    ("table", "genotypes"),
    [
        (np.zeros((3, 257), np.float32), np.zeros((2, 3), np.uint8)),
        (np.zeros((3, 0), np.float32), np.zeros((2, 3), np.uint8)),
        (np.zeros((0, 3), np.float32), np.zeros((2, 0), np.uint8)),
        (np.zeros(3, np.float32), np.zeros((2, 3), np.uint8)),
        (np.zeros((3, 4), np.float32), np.zeros((2, 4), np.uint8)),
        (np.zeros((3, 4), np.float32), np.zeros(3, np.uint8)),
        (np.zeros((3, 4), np.float32), np.zeros((2, 3), np.int64)),
    ],
)
def test_what_does_not_fit_is_refused(table, genotypes):
    for function in (score, score_reference):
        with pytest.raises(ValueError, match=r"a table is|genotypes are"):
            function(table, genotypes)
