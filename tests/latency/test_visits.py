"""Levels out of visits in a world whose truth is known: archs of some speed, batches in some state, and noise."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.measure import summarize
from hwnas.latency.visits import QUIET, Levels, Visit
from hwnas.ops.dense import Dense

ARCHS = [Arch(TensorSpec((4,)), (Node("op", Dense(n, "none"), (INPUT,)),), "op") for n in range(1, 61)]


def visit(arch: Arch, turn: int, canary_ms: float, ms: float) -> Visit:
    return Visit("network", "s", arch, turn, canary_ms, summarize([ms] * 3, 1, True, 0.0))


def world(sweeps: int, noise: float, seed: int = 0, size: int = 12) -> tuple[list[Visit], np.ndarray, np.ndarray]:
    """Visits, the archs' true times in state 1, and the state at each visit. The canary is noisier than the archs."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.normal(size=len(ARCHS)))
    visits, states = [], []
    for sweep in range(sweeps):
        order = rng.permutation(len(ARCHS)) if sweep else np.arange(len(ARCHS))
        for batch in np.split(order, len(ARCHS) // size):
            state = float(np.exp(abs(rng.normal(scale=0.1))))
            canary = 0.2 * state * float(np.exp(3 * noise * rng.normal()))
            for i in batch:
                visits.append(visit(ARCHS[i], sweep % 2, canary, truth[i] * state * float(np.exp(noise * rng.normal()))))
                states.append(state)
    return visits, truth, np.array(states)


def found(levels: Levels, turn: int | None = None) -> np.ndarray:
    return np.array([levels.latency_ms(arch, turn) for arch in ARCHS])


def test_states_of_the_machine_are_taken_out():
    visits, truth, states = world(sweeps=4, noise=0.01)
    levels = Levels(visits)
    error = found(levels) / truth / np.quantile(states, QUIET) - 1
    assert np.abs(error).mean() < 0.01
    raw = [np.mean([v.measurement.latency_ms for v in visits if v.arch == arch]) for arch in ARCHS]
    assert np.std(np.log(found(levels) / truth)) < 0.3 * np.std(np.log(raw / truth))
    for turn in (0, 1):
        assert np.abs(found(levels, turn) / truth / np.quantile(states, QUIET) - 1).mean() < 0.015


def test_without_noise_they_are_exact_and_both_turns_agree():
    visits, truth, _ = world(sweeps=3, noise=0.0)
    levels = Levels(visits)
    ratio = found(levels) / truth
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert max(levels.retest(arch) for arch in ARCHS) < 1e-6


def test_where_everything_was_visited_once_the_canary_tells_the_states():
    visits, truth, _ = world(sweeps=1, noise=0.0)
    ratio = found(Levels(visits)) / truth
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_turns_and_what_was_not_visited():
    first, second, third = ARCHS[:3]
    levels = Levels([visit(first, 0, 0.2, 1.0), visit(first, 1, 0.2, 1.1), visit(second, 0, 0.2, 3.0)])
    assert levels.retest(first) == pytest.approx(0.1)
    assert levels.latency_ms(first, 1) == pytest.approx(1.1 * levels.latency_ms(first, 0))
    assert levels.latency_ms(second) == pytest.approx(levels.latency_ms(second, 0))
    assert levels.retest(second) is None
    assert levels.latency_ms(second, 1) is levels.latency_ms(third) is None
