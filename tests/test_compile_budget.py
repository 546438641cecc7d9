"""Budgets: what nothing keeps is refused, what is found keeps them as measured, and a miss is said."""

from __future__ import annotations

import json

import pytest
from fake_device import install, slowed
from fake_device import measure as fake_measure
from runs import FILES, SPACE, Boom, run

import hwnas.compile.phases
import hwnas.compile.run
from hwnas.errors import UserError
from hwnas.latency.measure import Measured, summarize
from hwnas.lower.onnx import arch_text
from hwnas.ops import read_arch
from hwnas.report.run import RunFolder
from hwnas.search.budget import Budget

pytestmark = pytest.mark.usefixtures("fake_device")


@pytest.mark.parametrize("budget", ["0.03ms", "30kMACs", "1kparams", "1KB", "60us,1kparams", "40kMACs,0.06ms,10b"])
def test_a_budget_that_nothing_meets_names_the_smallest_there_is(folder, budget):
    with pytest.raises(UserError, match="no architecture of mobilenet") as caught:
        run(folder, budget=budget)
    assert not (folder / "run").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", [0, 8, 40])
@pytest.mark.parametrize(("metric", "unit"), [("macs", "MACs"), ("params", "params"), ("peak_bytes", "B")])
def test_asking_for_the_smallest_that_the_error_names_works(tmp_path, monkeypatch, head, metric, unit):
    """The remedy is true: the number that it names is a budget that some network keeps."""
    space = SPACE.replace("head=16", f"head={head}")
    with pytest.raises(UserError) as caught:
        run(tmp_path, space=space, budget=f"1{unit}")
    named = str(caught.value).split("the smallest there is has ")[1].split(":")[0]
    monkeypatch.setattr(hwnas.compile.phases, "train_supernet", lambda *args, **kwargs: (_ for _ in ()).throw(Boom()))
    with pytest.raises(Boom):  # it got as far as training
        run(tmp_path, space=space, budget=named)


@pytest.mark.parametrize("budget", ["60kMACs", "2.2kparams", "10KB", "60kMACs,0.06ms", "0.06ms,2500params,9KB"])
def test_every_kind_of_budget_is_kept(folder, budget):
    report = run(folder, budget=budget, evaluations=5, supernet_epochs=1, epochs=1)
    limits = Budget.parse(budget).limits
    found = {
        "macs": report.macs,
        "params": report.params,
        "peak_bytes": report.peak_bytes,
        "latency_ms": report.measured.latency_ms,
    }
    assert report.succeeded == all(found[m] <= limit for m, limit in limits.items()) is True
    rows = [json.loads(line) for line in (folder / "run/history.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == 5
    assert all(r["metrics"][m] <= limit for r in rows for m, limit in limits.items())
    measured_latency = "latency_ms" in limits
    assert (report.predicted is not None) == measured_latency == (folder / "run/profile.jsonl").exists()


def test_judged_by_its_p90_the_winner_keeps_the_budget_nine_times_in_ten(folder, monkeypatch):
    """A device on which three blocks in ten are quiet, and the others take half as long again."""

    def restless(models, device, **arguments):
        found = fake_measure(models, device, **arguments)
        times = [summarize([m.latency_ms] * 3 + [1.5 * m.latency_ms] * 7, 1, True, 0.0) for m in found.models]
        return Measured(times, found.canary)

    install(monkeypatch.setattr, restless)
    fast = {"evaluations": 5, "supernet_epochs": 1, "epochs": 1, "budget": "0.09ms", "profile": folder / "restless"}
    quiet, judged = run(folder, **fast), run(folder, "judged", judge="p90", **fast)
    assert quiet.succeeded
    assert judged.succeeded
    assert judged.measured.p90_ms <= 0.09
    for report, factor in ((quiet, 1.0), (judged, 1.5)):
        best = next(a for a in report.finalists if a.key == report.key)
        assert best.measured_ms == pytest.approx(factor * report.measured.latency_ms, rel=1e-6)
        assert best.predicted_ms == pytest.approx(best.measured_ms, rel=1e-3)  # what is predicted is what is judged
    rows = [json.loads(line) for line in (folder / "judged/history.jsonl").read_text().splitlines()[1:]]
    assert all(r["metrics"]["latency_ms"] <= 0.09 for r in rows)
    with pytest.raises(UserError, match="judge is quiet or p90; got 'p99'"):
        run(folder, "other", judge="p99")


def test_a_missed_budget_is_said_with_what_was_tried(folder, monkeypatch):
    monkeypatch.setattr(hwnas.compile.run, "measure", slowed(lambda arch, n: 1.5))
    report = run(folder, budget="0.06ms", evaluations=20)
    assert not report.succeeded
    assert report.measured.latency_ms > 0.06
    keys = {json.loads(line)["key"] for line in (folder / "run/history.jsonl").read_text().splitlines()[1:]}
    assert {a.key for a in report.finalists} == keys  # all candidates were tried, in groups
    for attempt in report.finalists:
        assert attempt.exceeds_by == pytest.approx(attempt.measured_ms / 0.06 - 1, rel=1e-9)
        assert attempt.exceeds_by > 0
        assert attempt.measured_ms == pytest.approx(1.5 * attempt.predicted_ms, rel=1e-6)
    nearest = min(report.finalists, key=lambda a: a.exceeds_by)
    assert report.key == nearest.key  # the nearest miss is what was trained
    assert report.measured.latency_ms == pytest.approx(nearest.measured_ms, rel=1e-9)
    assert {p.name for p in (folder / "run").iterdir()} == FILES


def test_the_best_finalist_that_keeps_the_budget_wins(undisturbed, folder, monkeypatch):
    """The best of the search turns out too slow on the device: the next one that is not becomes the winner."""
    ranked = [a.key for a in RunFolder(undisturbed / "run").read_report().finalists]
    slow = set(ranked[:2])
    monkeypatch.setattr(hwnas.compile.run, "measure", slowed(lambda arch, n: 3.0 if arch.key in slow else 1.0))
    report = run(folder)
    assert report.succeeded
    assert report.key == ranked[2]
    assert [a.exceeds_by > 0 for a in report.finalists][:3] == [True, True, False]


def test_a_finalist_that_is_slower_once_trained_makes_room_for_the_next(undisturbed, folder, monkeypatch):
    ranked = [a.key for a in RunFolder(undisturbed / "run").read_report().finalists]
    monkeypatch.setattr(
        hwnas.compile.run, "measure", slowed(lambda arch, n: 2.0 if n == 1 and arch.key == ranked[0] else 1.0)
    )  # fmt: skip
    report = run(folder)
    assert report.succeeded
    assert report.key == ranked[1]
    assert read_arch((folder / "run/arch.txt").read_text()).key == ranked[1]
    assert read_arch(arch_text((folder / "run/model.onnx").read_bytes())).key == ranked[1]
    first = next(a for a in report.finalists if a.key == ranked[0])
    assert first.exceeds_by == pytest.approx(first.measured_ms / 0.06 - 1) or first.exceeds_by == 0
