"""Profiles with measurements that the test invents, and the predictors fitted to them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.latency import profile as module
from hwnas.latency.device import Device
from hwnas.latency.measure import Measured, Measurement, summarize
from hwnas.latency.predictor import make_predictor
from hwnas.latency.profile import EMPTY, Profile, calibration_archs, op_arch, profile_space, retest_error
from hwnas.lower.cost import cost
from hwnas.lower.features import features
from hwnas.placements import placed_ops
from hwnas.space import Space
from hwnas.spaces import make_space

HERE = Device(name="here")
SPACE = make_space(
    "mobilenet(input=(3, 16, 16), classes=3, stages=((16, 2, 2), (24, 2, 2)), kernels=(3, 5), expansions=(2, 3), "
    "depths=(1, 2), head=0)"
)


def number(ms: float) -> Measurement:
    return summarize([ms, ms, ms], 1, True, 0.0)


def op_ms(placed: object) -> float:
    """An invented latency of an op, between 0.1 and 0.9 ms."""
    return 0.1 + 0.8 * random.Random(str(placed)).random()


def network_ms(arch: object, a: float = 0.6, b: float = 0.3, c: float = 0.01, d: float = 0.05) -> float:
    """Exactly linear in the features of the latency table; `op_ms` is what the op costs above an empty call."""
    found = features(arch)
    table = sum(n * op_ms(p) for p, n in found.ops.items())
    return a * table + b * found.weight_bytes / 1e6 + c * found.nodes + d


def filled(path: Path, networks: int = 16, space: Space = SPACE, latency=network_ms, ops: bool = True) -> Profile:
    profile = Profile.open(path, HERE)
    profile.add("empty", "", EMPTY, 0, 0.2, number(0.02))
    if ops:
        for placed in placed_ops(space):
            profile.add("op", "", op_arch(placed), 0, 0.2, number(0.02 + op_ms(placed)))
    for arch in calibration_archs(space, networks):
        profile.add("network", space.fingerprint, arch, 0, 0.2, number(latency(arch)))
    return profile


def rows(profile: Profile) -> list[tuple[object, ...]]:
    return [
        (r.kind, r.space, r.arch, r.turn, r.canary_ms, r.measurement.latency_ms)
        for k in ("empty", "op", "network")
        for r in profile.rows(k)
    ]


def test_what_is_added_is_read_back(tmp_path):
    profile = filled(tmp_path / "p.jsonl")
    again = Profile.load(tmp_path / "p.jsonl", HERE)
    assert len(rows(again)) == len(rows(profile)) > 20
    for left, right in zip(rows(profile), rows(again), strict=True):
        assert left[:5] == right[:5]
        assert left[5] == pytest.approx(right[5], abs=5e-7)
    assert again.missing(SPACE) == profile.missing(SPACE) == []
    assert set(again.ops()) == set(placed_ops(SPACE))
    assert again.canary_ms == 0.2


def test_a_torn_last_line_is_dropped_on_resume_and_refused_on_load(tmp_path):
    path = tmp_path / "p.jsonl"
    filled(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = len(whole) - len(lines[-1])
    expected = rows(Profile.load(path, HERE))[:-1]
    for cut in sorted({start + 1, start + 2, len(whole) - 2, len(whole) - 1, (start + len(whole)) // 2}):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="truncated"):
            Profile.load(path, HERE)
        resumed = Profile.open(path, HERE)
        assert rows(resumed) == expected
        assert path.read_bytes() == whole[:start]
        resumed.add("empty", "", EMPTY, 1, 0.2, number(0.03))  # and goes on
        assert len(rows(Profile.load(path, HERE))) == len(expected) + 1
    path.write_bytes(whole[:start])
    assert rows(Profile.load(path, HERE)) == expected


@pytest.mark.parametrize(
    "device", [Device(name="here", threads=2), Device(name="here", spinning=False), Device(name="here", optimization="basic")]
)
def test_a_profile_of_another_device_is_refused(tmp_path, device):
    filled(tmp_path / "p.jsonl", 1, ops=False)
    for door in (Profile.load, Profile.open):
        with pytest.raises(UserError, match="measured with another"):
            door(tmp_path / "p.jsonl", device)


def test_a_profile_of_another_runtime_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "p.jsonl"
    filled(path, 1, ops=False)
    header, *rest = path.read_text().splitlines(keepends=True)
    values = json.loads(header)
    values["fingerprint"]["runtime"] = "onnxruntime 1.0.0"
    path.write_text("".join([json.dumps(values) + "\n", *rest]))
    before = path.read_bytes()
    for door in (Profile.load, Profile.open):
        with pytest.raises(UserError, match=r"another runtime: onnxruntime 1\.0\.0"):
            door(path, HERE)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [],
        lambda lines: [b"{}\n", *lines[1:]],
        lambda lines: [b'{"format": "hwnas history 1"}\n', *lines[1:]],
        lambda lines: [b'{"format": "hwnas profile 1", "fingerprint": []}\n', *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], b"[1, 2]\n"],
        lambda lines: [lines[0], b"not json\n", *lines[1:]],
        lambda lines: [lines[0], b"\n", *lines[1:]],
        lambda lines: [lines[0], b"{}\n"],
        lambda lines: [lines[0], lines[1].replace(b"latency_ms", b"latency")],
        lambda lines: [lines[0], lines[1].replace(b"output(x)", b"output(y)")],
        lambda lines: [lines[0], lines[1].replace(b'"canary_ms"', b'"canary"')],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "arch": 5}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "latency_ms": "fast"}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "canary_ms": None}).encode() + b"\n"],
        lambda lines: [b"\xff\xfe" + lines[0]],
    ],
)
def test_damaged_profiles_are_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "p.jsonl"
    filled(path, 1, ops=False)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    for door in (Profile.load, Profile.open):
        with pytest.raises(UserError) as caught:
            door(path, HERE)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before


def test_a_missing_profile(tmp_path):
    with pytest.raises(UserError, match="hwnas profile"):
        Profile.load(tmp_path / "none.jsonl", HERE)


def test_the_quietest_row_stands(tmp_path):
    profile = Profile.open(tmp_path / "p.jsonl", HERE)
    for canary, ms in ((0.3, 5.0), (0.2, 3.0), (0.25, 2.0), (0.2, 4.0)):
        profile.add("empty", "", EMPTY, 0, canary, number(ms))
    profile.add("empty", "", EMPTY, 1, 0.5, number(9.0))
    assert [(r.turn, r.measurement.latency_ms) for r in profile.rows("empty")] == [
        (0, 4.0),
        (1, 9.0),
    ]  # the later one of equals
    assert [profile.is_quiet(r) for r in profile.rows("empty")] == [True, False]


def test_retest_error_in_closed_form(tmp_path):
    profile = Profile.open(tmp_path / "p.jsonl", HERE)
    assert retest_error(profile, SPACE) is None
    archs = calibration_archs(SPACE, 4)
    first, second = (1.0, 2.0, 4.0), (1.1, 1.8, 4.0)
    for turn, values in ((0, first), (1, second)):
        for arch, ms in zip(archs, values, strict=False):
            profile.add("network", SPACE.fingerprint, arch, turn, 0.2, number(ms))
    profile.add("network", SPACE.fingerprint, archs[3], 0, 0.2, number(7.0))  # measured once only
    profile.add("network", "another space", archs[3], 1, 0.2, number(70.0))
    assert retest_error(profile, SPACE) == pytest.approx((0.1 + 0.1 + 0.0) / 3, rel=1e-9)


def test_calibration_networks_are_distinct_and_always_the_same():
    archs = calibration_archs(SPACE, 20)
    assert archs == calibration_archs(SPACE, 20)
    assert archs[:5] == calibration_archs(SPACE, 5)
    assert len({a.key for a in archs}) == 20
    assert all(simplify(a) == a for a in archs)
    tiny = make_space("chain(input=(4,), classes=2, kind='dense', layers=1, widths=(2, 3), activations=('relu',))")
    assert len(calibration_archs(tiny, 20)) == 2  # there are no more


class TestLookupTable:
    def test_exact_where_latency_is_linear_in_the_features(self, tmp_path):
        predictor = make_predictor("lookup_table", filled(tmp_path / "p.jsonl"), SPACE)
        rng = random.Random(9)
        archs = [SPACE.decode(SPACE.sample(rng)) for _ in range(20)]
        for arch, found in zip(archs, predictor.predict(archs), strict=True):
            assert found.latency_ms == pytest.approx(network_ms(arch), rel=1e-6)
            assert found.low_ms <= found.latency_ms <= found.high_ms
            assert found.high_ms <= found.low_ms * (1 + 1e-5)
        error = predictor.error(None)
        assert error.networks == 16
        assert error.mape < 1e-6
        assert error.within_10_percent == 1.0
        assert error.spearman == pytest.approx(1.0)
        assert error.retest is None

    def test_a_profile_from_disk_predicts_the_same(self, tmp_path):
        fresh = make_predictor("lookup_table", filled(tmp_path / "p.jsonl"), SPACE)
        stored = make_predictor("lookup_table", Profile.load(tmp_path / "p.jsonl", HERE), SPACE)
        archs = calibration_archs(SPACE, 5)
        for left, right in zip(fresh.predict(archs), stored.predict(archs), strict=True):
            assert left.latency_ms == pytest.approx(right.latency_ms, rel=1e-4)  # rows are stored to a nanosecond

    def test_the_interval_holds_nine_in_ten_of_the_left_out(self, tmp_path):
        def noisy(arch: object) -> float:
            return network_ms(arch) * (1 + 0.1 * random.Random(arch.key).gauss(0, 1))

        profile = filled(tmp_path / "p.jsonl", 40, latency=noisy)
        predictor = make_predictor("lookup_table", profile, SPACE)
        inside = 0
        for row, left_out in zip(profile.rows("network"), predictor.left_out, strict=True):
            (found,) = predictor.predict([row.arch])
            scale = left_out / found.latency_ms  # the interval around what was predicted without this network
            inside += scale * found.low_ms <= row.measurement.latency_ms <= scale * found.high_ms
        assert inside >= 36
        error = predictor.error(0.02)
        relative = np.abs(predictor.left_out / [r.measurement.latency_ms for r in profile.rows("network")] - 1)
        assert error.mape == pytest.approx(relative.mean(), rel=1e-12)
        assert error.within_10_percent == np.mean(relative <= 0.1)
        assert error.retest == 0.02

    def test_the_lower_of_two_turns_counts(self, tmp_path):
        profile = filled(tmp_path / "p.jsonl")
        for arch in calibration_archs(SPACE, 16):
            profile.add("network", SPACE.fingerprint, arch, 1, 0.2, number(2 * network_ms(arch)))
        assert make_predictor("lookup_table", profile, SPACE).error(None).mape < 1e-6

    def test_a_profile_that_lacks_ops(self, tmp_path):
        with pytest.raises(UserError, match="lacks") as caught:
            make_predictor("lookup_table", filled(tmp_path / "p.jsonl", ops=False), SPACE)
        assert str(len(placed_ops(SPACE))) in str(caught.value)

    def test_a_profile_that_lacks_the_empty_run(self, tmp_path):
        profile = Profile.open(tmp_path / "p.jsonl", HERE)
        for placed in placed_ops(SPACE):
            profile.add("op", "", op_arch(placed), 0, 0.2, number(1.0))
        with pytest.raises(UserError, match="no empty run"):
            make_predictor("lookup_table", profile, SPACE)

    def test_an_arch_of_another_space(self, tmp_path):
        predictor = make_predictor("lookup_table", filled(tmp_path / "p.jsonl"), SPACE)
        other = make_space("nasbench201(channels=4, cells=1)")
        with pytest.raises(UserError, match="lacks an op"):
            predictor.predict([other.decode((3,) * 6)])


@pytest.mark.parametrize("networks", [0, 3])
@pytest.mark.parametrize("name", ["lookup_table", "macs"])
def test_too_few_networks(tmp_path, networks, name):
    with pytest.raises(UserError, match="at least 4"):
        make_predictor(name, filled(tmp_path / "p.jsonl", networks), SPACE)


def test_networks_of_another_space_do_not_count(tmp_path):
    profile = filled(tmp_path / "p.jsonl", 10)
    wider = make_space(
        "mobilenet(input=(3, 16, 16), classes=4, stages=((16, 2, 2), (24, 2, 2)), kernels=(3, 5), expansions=(2, 3), "
        "depths=(1, 2), head=0)"
    )
    with pytest.raises(UserError, match=r"got '?0 in"):
        make_predictor("macs", profile, wider)


def test_macs_is_exact_where_latency_is_linear_in_macs(tmp_path):
    def linear(arch: object) -> float:
        return 0.4 * cost(arch).macs / 1e6 + 0.05

    predictor = make_predictor("macs", filled(tmp_path / "p.jsonl", ops=False, latency=linear), SPACE)
    arch = SPACE.decode(SPACE.sample(random.Random(4)))
    assert predictor.predict([arch])[0].latency_ms == pytest.approx(linear(arch), abs=1e-6)  # rows keep six digits
    assert predictor.predict([]) == []


@pytest.mark.parametrize("name", ["nosuch", "json", "os.path"])
def test_unknown_predictors(tmp_path, name):
    with pytest.raises(UserError):
        make_predictor(name, filled(tmp_path / "p.jsonl", 4, ops=False), SPACE)


class TestProfileSpace:
    """profile_space with a `measure` that the test invents."""

    SMALL = make_space("chain(input=(4,), classes=2, kind='dense', layers=2, widths=(2, 3), activations=('relu',))")

    def fake(self, monkeypatch, canary=lambda call: 0.2, die_at: int | None = None) -> list[int]:
        calls: list[int] = []

        def measure(models, device, *, seconds, canary_ms):
            if die_at is not None and len(calls) == die_at:
                raise KeyboardInterrupt
            calls.append(len(models))
            ms = canary(len(calls))
            return Measured([number(1.0 + i) for i in range(len(models))], number(ms))

        monkeypatch.setattr(module, "measure", measure)
        return calls

    def test_everything_is_measured_once_and_networks_twice(self, tmp_path, monkeypatch):
        calls = self.fake(monkeypatch)
        profile = Profile.open(tmp_path / "p.jsonl", HERE)
        told: list[tuple[str, int, int]] = []
        profile_space(profile, self.SMALL, networks=3, progress=lambda *a: told.append(a))
        ops = placed_ops(self.SMALL)
        assert sum(calls) == 1 + 3 + len(ops) + 3
        assert profile.missing(self.SMALL) == []
        assert sorted(r.turn for r in profile.rows("network", self.SMALL.fingerprint)) == [0] * 3 + [1] * 3
        assert {phase for phase, *_ in told} == {"empty", "networks", "operators", "networks again"}
        assert all(0 <= done <= total for _, done, total in told)
        before = (tmp_path / "p.jsonl").read_bytes()
        profile_space(Profile.open(tmp_path / "p.jsonl", HERE), self.SMALL, networks=3)
        assert (tmp_path / "p.jsonl").read_bytes() == before  # nothing was left to do

    @pytest.mark.parametrize("die_at", [0, 1, 2, 3])
    def test_interrupted_anywhere_it_goes_on(self, tmp_path, monkeypatch, die_at):
        self.fake(monkeypatch, die_at=die_at)
        with pytest.raises(KeyboardInterrupt):
            profile_space(Profile.open(tmp_path / "p.jsonl", HERE), self.SMALL, networks=3)
        done = len((tmp_path / "p.jsonl").read_text().splitlines()) - 1
        calls = self.fake(monkeypatch)
        profile = Profile.open(tmp_path / "p.jsonl", HERE)
        profile_space(profile, self.SMALL, networks=3)
        assert sum(calls) + done == 1 + 3 + len(placed_ops(self.SMALL)) + 3
        assert profile.missing(self.SMALL) == []

    def test_rows_from_a_busy_machine_are_measured_again_twice_at_most(self, tmp_path, monkeypatch):
        """The first call sees a machine 1.6 times slower than the others do; only its rows are repeated."""
        calls = self.fake(monkeypatch, canary=lambda call: 0.32 if call == 2 else 0.2)
        profile = Profile.open(tmp_path / "p.jsonl", HERE)
        profile_space(profile, self.SMALL, networks=3)
        assert sum(calls) == 1 + 3 + len(placed_ops(self.SMALL)) + 3 + 3
        assert all(profile.is_quiet(r) for r in profile.rows("network"))
        # a machine that only ever gets faster: three times everything, and then it is enough
        calls = self.fake(monkeypatch, canary=lambda call: 0.2 * 0.9**call)
        endless = Profile.open(tmp_path / "q.jsonl", HERE)
        profile_space(endless, self.SMALL, networks=3)
        assert sum(calls) <= 3 * (1 + 3 + len(placed_ops(self.SMALL)) + 3)
        assert endless.missing(self.SMALL) == []

    def test_for_real_on_this_machine(self, tmp_path):
        """One pass with ONNX Runtime, of a space with a handful of ops; only that numbers come out, not which."""
        tiny = make_space("chain(input=(4,), classes=2, kind='dense', layers=1, widths=(2,), activations=('relu',))")
        profile = Profile.open(tmp_path / "p.jsonl", HERE)
        from hwnas.latency.measure import measure

        (arch,) = calibration_archs(tiny, 1)
        from hwnas.lower.onnx import to_onnx
        from hwnas.lower.weights import init_weights

        models = [to_onnx(a, init_weights(a)).SerializeToString() for a in (EMPTY, arch)]
        found = measure(models, HERE, seconds=1.0, min_rounds=3)
        for a, m in zip((EMPTY, arch), found.models, strict=True):
            assert m.latency_ms > 0
            assert m.blocks >= 1
            profile.add("network", tiny.fingerprint, a, 0, found.canary.latency_ms, m)
        assert len(Profile.load(tmp_path / "p.jsonl", HERE).rows("network")) == 2
