"""profile_space with measurements that the test invents: what is visited when, and what a profile then holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hwnas.errors import UserError
from hwnas.latency import sweep as module
from hwnas.latency.device import Device
from hwnas.latency.measure import Failure, Measured, Measurement, summarize
from hwnas.latency.profile import Profile, calibration_archs
from hwnas.latency.sweep import SWEEPS, profile_space
from hwnas.lower.onnx import arch_text
from hwnas.placements import placed_ops
from hwnas.spaces import make_space

HERE = Device(name="here")
SMALL = make_space("chain(input=(4,), classes=2, kind='dense', layers=2, widths=(2, 3), activations=('relu',))")
LARGE = make_space("chain(input=(5,), classes=2, kind='dense', layers=2, widths=(2, 3), activations=('relu',))")
ITEMS = 1 + 3 + len(placed_ops(SMALL))


def number(ms: float) -> Measurement:
    return summarize([ms] * 3, 1, True, 0.0)


class Calls(list[int]):
    """Sizes of the batches that were measured; `visits`: how often each arch was."""

    visits: Counter[str]


@pytest.fixture
def fake(monkeypatch):
    """Puts a measure in place with latencies `ms(visit)`, a canary `canary(call)`, `failing` models; interrupted at a call."""

    def install(ms=lambda visit: 1.0, canary=lambda call: 0.2, failing=lambda text: None, die_at=None) -> Calls:
        calls = Calls()
        calls.visits = Counter()

        def measure(models, device, *, seconds, canary_ms, target):
            if die_at is not None and len(calls) == die_at:
                raise KeyboardInterrupt
            calls.append(len(models))
            outcomes = []
            for text in map(arch_text, models):
                reason = failing(text)
                calls.visits[text] += 1
                outcomes.append(Failure(reason) if reason else number(ms(calls.visits[text])))
            return Measured(outcomes, number(canary(len(calls))))

        monkeypatch.setattr(module, "measure", measure)
        return calls

    return install


def opened(path: Path) -> Profile:
    return Profile.open(path / "p.jsonl", HERE)


def test_everything_is_measured_twice_and_then_left_alone(tmp_path, fake):
    calls, told, profile = fake(), [], opened(tmp_path)
    coverage = profile_space(profile, HERE, SMALL, networks=3, progress=lambda *a: told.append(a))
    assert sum(calls) == 2 * ITEMS
    assert set(calls.visits.values()) == {2}
    assert profile.missing(SMALL) == []
    assert (coverage.total, coverage.measured, coverage.settled) == (ITEMS,) * 3
    for kind, count in (("empty", 1), ("network", 3), ("op", len(placed_ops(SMALL)))):
        assert sorted(r.turn for r in profile.visits(kind)) == [0] * count + [1] * count
    assert all(0 <= done <= total == ITEMS for _, done, total in told)
    assert told[-1][1] == ITEMS
    assert profile.retest_error(SMALL) == 0
    before = (tmp_path / "p.jsonl").read_bytes()
    for improve in (False, True):
        assert profile_space(opened(tmp_path), HERE, SMALL, networks=3, improve=improve) == coverage
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_the_two_turns_of_an_arch_lie_a_sweep_apart(tmp_path, fake):
    fake()
    profile_space(opened(tmp_path), HERE, SMALL, networks=3)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()[1:]]
    assert [r["turn"] for r in rows] == [0] * ITEMS + [1] * ITEMS


@pytest.mark.parametrize("die_at", range(6))
def test_interrupted_anywhere_it_goes_on_and_measures_nothing_again(tmp_path, fake, die_at):
    first = fake(die_at=die_at)
    with pytest.raises(KeyboardInterrupt):
        profile_space(opened(tmp_path), HERE, SMALL, networks=3)
    second = fake()
    profile = opened(tmp_path)
    profile_space(profile, HERE, SMALL, networks=3)
    assert len(first) == die_at
    assert set((first.visits + second.visits).values()) == {2}
    assert profile.missing(SMALL) == []


def test_a_machine_that_was_busy_is_no_reason_for_another_visit(tmp_path, fake):
    """The second call sees a machine 1.6 times slower: that is its state, and not the networks' own."""
    calls = fake(ms=lambda visit: 1.6 if len(calls) == 2 else 1.0, canary=lambda call: 0.32 if call == 2 else 0.2)
    profile = opened(tmp_path)
    coverage = profile_space(profile, HERE, SMALL, networks=3)
    assert coverage.settled == coverage.total
    assert set(calls.visits.values()) == {2}
    assert list(profile.latencies("network").values()) == pytest.approx([1.0] * 3, rel=1e-6)


@pytest.mark.parametrize(
    "world",
    [{"ms": lambda visit: 1.0 * 1.1**visit}, {"ms": lambda visit: 1.0 + 0.5 * (visit % 2)}],
    ids=["drifts", "alternates"],
)
def test_what_never_settles_is_visited_six_times_and_no_more(tmp_path, fake, world):
    calls = fake(**world)
    coverage = profile_space(opened(tmp_path), HERE, SMALL, networks=3)
    assert max(calls.visits.values()) <= SWEEPS
    assert coverage.measured == coverage.total


def test_turns_within_one_percent_are_settled(tmp_path, fake):
    calls = fake(ms=lambda visit: (1.0, 1.05, 1.05, 1.009)[visit - 1])
    profile = opened(tmp_path)
    assert profile_space(profile, HERE, SMALL, networks=3).settled == ITEMS
    assert set(calls.visits.values()) == {4}
    assert profile.retest_error(SMALL) == pytest.approx(0.0045, abs=2e-3)


def test_a_failure_is_recorded_and_tried_again_by_the_next_run(tmp_path, fake):
    def failing(text: str) -> str | None:
        return "the agent ended" if "out=3" in text and "dense" in text and "classifier" not in text else None

    calls = fake(failing=failing)
    profile = opened(tmp_path)
    coverage = profile_space(profile, HERE, SMALL, networks=3)
    failed = {text for text in calls.visits if failing(text)}
    assert failed
    assert opened(tmp_path).failures() == profile.failures() == dict.fromkeys(failed, "the agent ended")
    assert all(calls.visits[text] == (1 if text in failed else 2) for text in calls.visits)
    assert (coverage.measured, coverage.settled) == (ITEMS - len(failed),) * 2
    calls = fake()
    profile = opened(tmp_path)
    assert profile_space(profile, HERE, SMALL, networks=3).settled == ITEMS
    assert dict(calls.visits) == dict.fromkeys(failed, 2)
    assert profile.failures() == {}


def test_a_device_on_which_nothing_works_ends_the_run(tmp_path, fake):
    calls = fake(failing=lambda text: "No space left on device")
    with pytest.raises(UserError, match="No space left on device"):
        profile_space(opened(tmp_path), HERE, SMALL, networks=5)
    assert calls == [1, 5]
    assert len(opened(tmp_path).failures()) == 6
    assert profile_space(opened(tmp_path), HERE, SMALL, networks=5, minutes=0).measured == 0


def test_it_stops_when_its_minutes_are_over(tmp_path, fake, monkeypatch):
    calls = fake()
    now = [0.0]

    def clock() -> float:
        now[0] += 15
        return now[0]

    monkeypatch.setattr(module.time, "monotonic", clock)
    coverage = profile_space(opened(tmp_path), HERE, SMALL, networks=3, minutes=1)
    assert calls == [1, 3]  # 30 and 45 s after the start; then a minute is over
    assert coverage.measured < coverage.total
    monkeypatch.undo()
    fake()
    assert profile_space(opened(tmp_path), HERE, SMALL, networks=3).settled == ITEMS


def test_several_spaces_share_a_profile_and_their_ops(tmp_path, fake):
    calls = fake()
    profile = opened(tmp_path)
    coverage = profile_space(profile, HERE, [SMALL, LARGE], networks=3)
    ops = set(placed_ops(SMALL)) | set(placed_ops(LARGE))
    assert set(placed_ops(SMALL)) & set(placed_ops(LARGE))
    assert coverage.total == 1 + 6 + len(ops)
    assert set(calls.visits.values()) == {2}
    assert set(profile.ops()) == ops
    for space in (SMALL, LARGE):
        assert set(profile.latencies("network", space.fingerprint)) == set(calibration_archs(space, 3))
        assert profile.missing(space) == []
