"""The inner search over spaces: exact answers against enumeration in plain Python, with keeps, limits and batch objectives."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.kernels.inner_search import Variation
from hwnas.lower.cost import cost
from hwnas.search.inner import search_additive, search_batch, tabulate
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space

CELL = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")
DARTS = make_space("darts(input=(1,8,8), classes=3, channels=2, cells=2)")
CHAIN = make_space("chain(input=(1,8,8), classes=3, layers=2, widths=(2,4), activations=('relu','tanh'))")


def prices(space: Space, metrics: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(len(c.options), metrics)) for c in space.choices]


def priced(tables: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    return sum(table[rows[:, i]] for i, table in enumerate(tables))


def everything(space: Space) -> list[Genotype]:
    return list(product(*(range(len(c.options)) for c in space.choices)))


def front_by_hand(values: np.ndarray, limits: list[float]) -> np.ndarray:
    """Two objectives: sorted by the first, each better in the second than all before."""
    front: list[np.ndarray] = []
    for row in sorted(values[(values <= limits).all(1)].tolist()):
        if not front or row[1] < front[-1][1]:
            front.append(row)
    return np.array(front).reshape(-1, values.shape[1])


@pytest.mark.parametrize("limits", [[np.inf, np.inf], [0.5, 1.0], [np.inf, -2.0]])
def test_the_front_of_a_small_space(limits):
    tables = prices(CELL, 2)
    expected = front_by_hand(priced(tables, np.array(everything(CELL))), limits)
    additive = search_additive(CELL, tables, objectives=2, limits=limits)
    batch = search_batch(CELL, lambda rows: priced(tables, rows), metrics=2, objectives=2, limits=limits)
    for answer in (additive, batch):
        assert answer.exact
        np.testing.assert_allclose(answer.values, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(priced(tables, np.array(answer.genotypes)), answer.values, rtol=1e-12, atol=1e-12)
    assert additive.best == batch.best == additive.genotypes[0]
    assert (additive.method, batch.method) == ("layer by layer", "enumeration")


def test_three_metrics_are_enumerated():
    tables = prices(CELL, 3, seed=3)
    values = priced(tables, np.array(everything(CELL)))
    limits = np.quantile(values, 0.4, axis=0).tolist()
    answer = search_additive(CELL, tables, objectives=1, limits=limits)
    assert (answer.exact, answer.method, answer.evaluated) == (True, "enumeration", 15625)
    assert answer.values[0, 0] == pytest.approx(values[(values <= limits).all(1), 0].min(), rel=1e-12)


def test_the_best_of_a_space_with_keeps_in_closed_form():
    """DARTS: every node keeps its two cheapest edges, each at its cheapest option."""
    tables = prices(DARTS, 1, seed=1)
    index = {c.name: i for i, c in enumerate(DARTS.choices)}
    best = 0.0
    for keep in DARTS.keeps:
        rows = [tables[index[c]][:, 0] for c in keep.choices]
        gains = sorted(min(v for o, v in enumerate(r) if o != keep.absent) - r[keep.absent] for r in rows)
        best += sum(r[keep.absent] for r in rows) + sum(gains[: keep.count])
    answer = search_additive(DARTS, tables, objectives=1)
    assert answer.exact
    assert DARTS.check(answer.best) == answer.best
    assert answer.values[0, 0] == pytest.approx(best, rel=1e-12)


def test_what_evolution_finds_is_of_the_space_within_limits_and_near_the_exact_front():
    tables = prices(DARTS, 2, seed=2)
    exact = search_additive(DARTS, tables, objectives=1, limits=[np.inf, 0.0])
    found = search_batch(
        DARTS, lambda rows: priced(tables, rows), metrics=2, objectives=1, limits=[np.inf, 0.0],
        variation=Variation(population=200, seed=3), generations=60, most_enumerated=1000,
    )  # fmt: skip
    assert (found.exact, found.method, found.evaluated) == (False, "evolution", 12000)
    assert all(DARTS.check(g) == g for g in found.genotypes)
    assert (found.values[:, 1] <= 0).all()
    rng = random.Random(0)
    drawn = priced(tables, np.array([DARTS.sample(rng) for _ in range(12000)]))
    assert found.values[0, 0] < drawn[drawn[:, 1] <= 0, 0].min()
    assert found.values[0, 0] >= exact.values[0, 0] - 1e-12


def test_nothing_within_the_limits_is_proven_or_only_not_found():
    tables = prices(CELL, 2)
    nowhere = search_additive(CELL, tables, objectives=1, limits=[np.inf, -1e9])
    assert nowhere.exact
    assert not nowhere.genotypes
    with pytest.raises(UserError, match="no genotype of the space"):
        _ = nowhere.best
    score = lambda rows: priced(tables, rows)  # noqa: E731
    some = Variation(population=20)
    lost = search_batch(
        CELL, score, metrics=2, objectives=1, limits=[np.inf, -1e9], variation=some, generations=3, most_enumerated=9
    )
    with pytest.raises(UserError, match="was found"):
        _ = lost.best


def test_tables_of_a_metric_that_is_a_sum_and_none_of_one_that_is_not():
    tables = prices(CHAIN, 2, seed=4)
    found = tabulate(CHAIN, lambda g: priced(tables, np.array([g]))[0])
    assert found is not None
    rows = np.array(everything(CHAIN))
    np.testing.assert_allclose(priced(list(found), rows), priced(tables, rows), rtol=1e-9, atol=1e-12)
    assert tabulate(CHAIN, lambda g: [float(cost(CHAIN.decode(g)).macs)]) is None  # a width meets the next one
    assert tabulate(DARTS, lambda g: [0.0]) is None
    fixed = "mobilenet(input=(1,8,8),classes=3,stages=((8,2,1),(8,2,1)),stem=8,first=8,depths=(2,),widths=(1.0,))"
    mobile = make_space(fixed)
    table = tabulate(mobile, lambda g: [float(cost(mobile.decode(g)).macs)])
    assert table is not None
    lightest = search_additive(mobile, table, objectives=1)
    members = np.array(everything(mobile))
    assert lightest.values[0, 0] == min(cost(mobile.decode(g)).macs for g in members)


def test_tables_that_do_not_fit_the_space_are_refused():
    with pytest.raises(UserError):
        search_additive(CELL, prices(CELL, 2)[1:], objectives=1)
    with pytest.raises(ValueError, match="the score of"):
        search_batch(CELL, lambda rows: np.zeros((len(rows), 3)), metrics=2, objectives=1)
