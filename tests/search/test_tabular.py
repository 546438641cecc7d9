"""Tables: rows found whatever their order, costs free, accuracy for a query, and one-line errors for what is no table."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.lower.structure import structure
from hwnas.search.budget import Budget
from hwnas.search.strategy import Trial, make_strategy
from hwnas.search.tabular import Table
from hwnas.spaces import make_space

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def write(path, columns):
    np.savez(path, **columns)
    return path


def small(n=64, choices=3, options=4, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.array(list(itertools.product(range(options), repeat=choices)), np.uint8)[rng.permutation(options**choices)[:n]]
    return {
        "codes": codes, "acc_e200": rng.uniform(10, 95, len(codes)), "acc_e12": rng.uniform(10, 95, len(codes)),
        "params": rng.integers(1, 1000, len(codes)), "flops": rng.integers(1, 10**9, len(codes)),
    }  # fmt: skip


def cells(count=40, seed=1):
    """Cells in the benchmark's words, with codes in an order of ops and edges of their own."""
    rng = random.Random(seed)
    order = [3, 0, 4, 2, 1]
    codes, texts = [], []
    for genotype in {tuple(rng.randrange(5) for _ in range(6)) for _ in range(count)}:
        (a, b, c, d, e, f) = (OPS[v] for v in genotype)
        texts.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")
        codes.append([order.index(v) for v in genotype][::-1])
    accuracy = np.random.default_rng(seed).uniform(10, 95, len(codes))
    return {"codes": np.array(codes), "arch_str": np.array(texts), "acc": accuracy, "params": np.arange(1, len(codes) + 1)}


def test_a_trial_reads_its_row_and_costs_are_known(tmp_path):
    columns = small()
    table = Table(write(tmp_path / "t.npz", columns))
    admission, evaluate = table.admission(Budget({"params": 1e9})), table.evaluator("acc_e200")
    for row, code in enumerate(columns["codes"]):
        genotype = tuple(code.tolist())
        assert table.space.check(genotype) == genotype
        candidate = evaluate(Trial(genotype))
        assert candidate.score.accuracy == pytest.approx(columns["acc_e200"][row] / 100)
        assert admission.traits(genotype).metrics == {"params": columns["params"][row], "macs": columns["flops"][row]}


def test_cells_become_networks_whatever_the_codes_mean(tmp_path):
    columns = cells()
    table = Table(write(tmp_path / "t.npz", columns))
    space = make_space("nasbench201(cells=1)")
    assert table.space.choices == space.choices
    assert table.space.size == len(columns["codes"])  # of a part of the cells, those alone
    for text, genotype in zip(columns["arch_str"], table.genotypes, strict=True):
        named = space.describe(genotype)
        parts = [p.strip("|").split("|") for p in text.split("+")]
        assert all(f"{named[f'e{int(e[-1])}_{t}']}~{e[-1]}" == e for t, part in enumerate(parts, 1) for e in part)
    traits = table.admission(Budget({"params": 1e9})).traits(table.genotypes[0])
    assert traits.counts == structure(space.decode(table.genotypes[0]))


def test_all_cells_are_the_space_itself(tmp_path):
    space = make_space("nasbench201(cells=1)")
    texts = []
    for genotype in space.genotypes():
        (a, b, c, d, e, f) = (OPS[v] for v in genotype)
        texts.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")
    codes = np.array(list(space.genotypes()))
    # The words stand in the order of targets, the choices in that of the benchmark: the same here.
    table = Table(write(tmp_path / "t.npz", {"codes": codes, "arch_str": np.array(texts), "acc": np.ones(len(codes))}))
    assert table.space == space


def test_words_of_another_space_are_left_alone(tmp_path):
    columns = {**small(), "arch_str": np.array([f"64-41414-{i}" for i in range(64)])}
    assert Table(write(tmp_path / "t.npz", columns)).genotypes == [tuple(c) for c in columns["codes"].tolist()]


def test_latency_is_matched_by_codes(tmp_path):
    columns = small()
    order = np.random.default_rng(3).permutation(64)
    latency = np.random.default_rng(4).uniform(1, 9, (2, 64))
    file = {"devices": np.array(["a", "b"]), "latency_ms": latency[:, order], "codes": columns["codes"][order]}
    table = Table(write(tmp_path / "t.npz", columns), write(tmp_path / "l.npz", file))
    for device, row in zip("ab", latency, strict=True):
        assert np.array_equal(table.known(device)["latency_ms"], row)
    del file["codes"]
    assert np.array_equal(
        Table(tmp_path / "t.npz", write(tmp_path / "m.npz", file)).known("a")["latency_ms"], latency[0, order]
    )


@pytest.mark.parametrize("n", [64, 20, 2])
def test_operators_stay_within_the_rows(tmp_path, n):
    table = Table(write(tmp_path / "t.npz", small(n)))
    space, rng = table.space, random.Random(0)
    assert space.size == n == len(set(space.genotypes()))
    for _ in range(100):
        a, b = space.sample(rng), space.sample(rng)
        mutant = space.mutate(a, rng)
        assert mutant != a
        for genotype in (a, mutant, space.crossover(a, b, rng), space.crossover(a, b, rng, "one_point")):
            assert genotype in table.row
        scores = [[rng.random() for _ in c.options] for c in space.choices]
        assert space.from_scores(scores) in table.row


def test_fidelity_reads_the_column_of_fewer_epochs(tmp_path):
    columns = small()
    evaluate = Table(write(tmp_path / "t.npz", columns)).evaluator("acc_e200")
    genotype = tuple(columns["codes"][5].tolist())
    for wanted, got, column in (
        (1.0, 1.0, "acc_e200"),
        (0.5, 0.06, "acc_e12"),
        (0.06, 0.06, "acc_e12"),
        (0.01, 0.06, "acc_e12"),
    ):
        assert evaluate.fidelity(wanted) == pytest.approx(got)
        assert evaluate(Trial(genotype, wanted)).score.accuracy == pytest.approx(columns[column][5] / 100)


def test_a_budget_that_no_row_keeps_is_refused_at_once(tmp_path):
    columns = small()
    table = Table(write(tmp_path / "t.npz", columns))
    least = float(columns["params"].min())
    assert table.admission(Budget({"params": least})).admits(table.admission(Budget({"params": least})).fallback)
    with pytest.raises(UserError, match="no row of the table keeps the budget"):
        table.admission(Budget({"params": least * 0.99}))
    with pytest.raises(UserError, match="lacks a metric of the budget"):
        table.admission(Budget({"latency_ms": 1.0}))


@pytest.mark.parametrize(
    ("text", "queries"), [("bayesian(initial=6)", 30), ("auto", 30), ("predictor(initial=6, batch=4, members=20)", 50)]
)
def test_surrogates_find_the_optimum_of_a_smooth_table(tmp_path, text, queries):
    """Accuracy that grows with each option: few of the 256 rows suffice a surrogate; chance would need half of them."""
    codes = np.array(list(itertools.product(range(4), repeat=4)))
    accuracy = 50 + codes @ [1.0, 2.0, 4.0, 3.0] + 0.5 * codes[:, 0] * codes[:, 1]
    table = Table(write(tmp_path / "t.npz", {"codes": codes, "acc": accuracy, "params": 1 + codes.sum(1)}))
    admission, evaluate = table.admission(Budget({"params": 9.0})), table.evaluator("acc")
    best = accuracy[codes.sum(1) < 9].max() / 100
    hits = 0
    for seed in range(3):
        strategy = make_strategy(text, admission, seed)
        told = []
        while len(told) < queries:
            for trial in strategy.ask():
                told.append(evaluate(trial).score)
                strategy.tell(trial, told[-1])
        hits += max(s.accuracy for s in told) > best - 1e-9
    assert hits >= 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"codes": None}, "lacks codes"),
        ({"codes": np.zeros((64, 3))}, "whole numbers"),
        ({"codes": np.arange(64)}, "whole numbers"),
        ({"codes": np.zeros((64, 3), int)}, "codes of its own"),
        ({"arch_str": np.array(["|x~0|+|y~0|z~1|"] * 64)}, "words of NAS-Bench-201"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, change, match):
    columns = {k: v for k, v in {**small(), **change}.items() if v is not None}
    with pytest.raises(UserError, match=match) as caught:
        Table(write(tmp_path / "t.npz", columns))
    assert "\n" not in str(caught.value)


def test_pickles_missing_files_columns_and_devices_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", codes=np.array([{}, {}], dtype=object))
    for path in ("p.npz", "none.npz"):
        with pytest.raises(UserError, match="not an npz table"):
            Table(tmp_path / path)
    table = Table(write(tmp_path / "t.npz", small()))
    with pytest.raises(UserError, match="every row"):
        Table(write(tmp_path / "n.npz", {**small(), "acc": np.full(64, np.nan)})).column("acc")
    for call in (lambda: table.column("nosuch"), lambda: table.column("codes"), lambda: table.known("nosuch")):
        with pytest.raises(UserError, match="no such"):
            call()
