"""The demo: its helpers against brute force, and the whole of it once on a device where nothing takes time."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fake_device import install, latency_ms, measure
from hypothesis import given
from hypothesis import strategies as st
from runs import FILES, SPACE

from hwnas.data import load_data
from hwnas.ops.mbconv import MbConv
from hwnas.report.run import RunFolder

PATH = Path(__file__).parent.parent / "examples" / "demo.py"


def load():
    spec = importlib.util.spec_from_file_location("demo", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


demo = load()


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9, unique=True), st.floats(0.01, 10))
def test_bracket_against_brute_force(values, target):
    latencies = dict(enumerate(values))
    chosen = demo.bracket(latencies, target)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(3, len(values))
    below = [m for m in latencies if latencies[m] <= target]
    above = [m for m in latencies if latencies[m] > target]
    must = {max(below, key=latencies.get)} if below else set()
    must |= {min(above, key=latencies.get)} if above else set()
    assert must <= set(chosen)

    def distance(group):
        return sum(abs(latencies[m] - target) for m in group)

    best = min(distance(g) for g in combinations(latencies, len(chosen)) if must <= set(g))
    assert distance(chosen) == pytest.approx(best, rel=1e-12)


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    st.floats(0, 11),
    st.randoms(),
)
def test_line_at_is_linear_interpolation(points, latency, rng):
    rng.shuffle(points)
    ordered = sorted(points)
    expected = np.interp(latency, [x for x, _ in ordered], [y for _, y in ordered])
    assert demo.line_at(points, latency) == pytest.approx(expected, abs=1e-9)


def test_the_scaled_networks_are_mobilenets_by_width():
    data = load_data("digits", limit=60)
    archs = demo.scaled_by_hand(SPACE, data)
    assert set(archs) <= set(demo.MULTIPLIERS)
    assert len({a.key for a in archs.values()}) == len(archs) >= 3
    latencies = [latency_ms(archs[m]) for m in sorted(archs)]
    assert latencies == sorted(latencies)
    for arch in archs.values():
        searched = [n.op for n in arch.nodes if n.name.startswith("stage") and isinstance(n.op, MbConv)]
        assert len(searched) == 2  # full depth
        assert all((op.kernel, op.expand, op.se) == (3, 6, False) for op in searched)


def test_the_demo_from_beginning_to_end(tmp_path, monkeypatch, capsys):
    install(monkeypatch.setattr)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(demo, "measure", measure)
    arguments = [
        "--space", SPACE, "--size", "8", "--limit", "80", "--budget", "0.06ms", "--out", tmp_path / "run", "--evaluations", "4",
        "--supernet-epochs", "1", "--epochs", "1", "--profile", tmp_path / "profile",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
    demo.main()
    out = capsys.readouterr().out
    assert {p.name for p in (tmp_path / "run").iterdir()} == FILES | {"comparison.json"}
    found = json.loads((tmp_path / "run/comparison.json").read_text())
    report = RunFolder(tmp_path / "run").read_report()
    rows = {r["network"]: r for r in found["rows"]}
    assert len(rows) == 4
    assert [r["latency_ms"] for r in found["rows"]] == sorted(r["latency_ms"] for r in found["rows"])
    winner = rows.pop("winner")
    assert (winner["accuracy"], winner["macro_f1"], winner["macs"]) == (report.test.accuracy, report.test.macro_f1, report.macs)
    assert winner["latency_ms"] == pytest.approx(report.measured.latency_ms, rel=1e-12)
    ordered = sorted((r["latency_ms"], r["accuracy"]) for r in rows.values())
    line = np.interp(winner["latency_ms"], [x for x, _ in ordered], [y for _, y in ordered])
    assert found["points_over_line"] == pytest.approx(100 * (winner["accuracy"] - line), abs=1e-9)
    assert all(name in out for name in ("winner", *rows))
    assert f"{found['points_over_line']:+.2f} points" in out
    demo.main()  # a second time it resumes, and finds the same
    assert json.loads((tmp_path / "run/comparison.json").read_text()) == found
