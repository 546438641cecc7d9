"""Profiles with measurements that the test invents, and the predictors fitted to them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement, summarize
from hwnas.latency.predictor import make_predictor
from hwnas.latency.profile import EMPTY, Profile, calibration_archs, op_arch
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
        (v.kind, v.space, v.arch, v.turn, v.canary_ms, v.measurement.latency_ms)
        for kind in ("empty", "op", "network")
        for v in profile.visits(kind)
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
    "device",
    [
        Device(name="here", threads=2),
        Device(name="here", spinning=False),
        Device(name="here", optimization="basic"),
        Device(name="here", precision="int8"),
    ],
)
def test_a_profile_of_another_device_is_refused(tmp_path, device):
    filled(tmp_path / "p.jsonl", 1, ops=False)
    for door in (Profile.load, Profile.open):
        with pytest.raises(UserError, match="measured with another"):
            door(tmp_path / "p.jsonl", device)


def test_an_int8_profile_is_not_one_of_fp32(tmp_path):
    Profile.open(tmp_path / "p.jsonl", Device(name="here", precision="int8"))
    with pytest.raises(UserError, match="another precision: int8"):
        Profile.load(tmp_path / "p.jsonl", HERE)


def test_the_latency_table_holds_every_op_in_the_same_state_of_the_machine(tmp_path):
    """Two batches, the second on a machine 1.5 times slower: what was seen in it alone counts as if it were not."""
    profile = Profile.open(tmp_path / "p.jsonl", HERE)
    first, second, third, *_ = placed_ops(SPACE)
    for placed, turn, canary, ms in ((first, 0, 0.2, 1.0), (second, 0, 0.2, 3.0), (first, 1, 0.3, 1.5), (third, 0, 0.3, 3.0)):
        profile.add("op", "", op_arch(placed), turn, canary, number(ms))
    table = profile.ops()
    assert set(table) == {first, second, third}
    assert table[second] == pytest.approx(3 * table[first], rel=1e-6)
    assert table[third] == pytest.approx(2 * table[first], rel=1e-6)


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
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "canary_ms": 0.0}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "latency_ms": -1.0}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "turn": 7}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "kind": "nonsense"}).encode() + b"\n"],
        lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "kind": "op"}).encode() + b"\n"],
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


def test_the_canary_is_compared_with_itself_in_the_same_company(tmp_path):
    """Beside networks, which leave it less of the caches, it is never as fast as beside ops."""
    profile = Profile.open(tmp_path / "p.jsonl", HERE)
    assert profile.canary_ms is None
    arch, *_ = calibration_archs(SPACE, 1)
    op = op_arch(placed_ops(SPACE)[0])
    for kind, of, canary in (("op", op, 0.20), ("op", op, 0.24), ("network", arch, 0.25), ("network", arch, 0.29)):
        profile.add(kind, "", of, len(profile.visits(kind)), canary, number(1.0))
    assert (profile.canary_ms, profile.quiet_canary_ms("op")) == pytest.approx((0.26, 0.21))


def test_retest_error_in_closed_form(tmp_path):
    profile = Profile.open(tmp_path / "p.jsonl", HERE)
    assert profile.retest_error(SPACE) is None
    archs = calibration_archs(SPACE, 4)
    first, second = (1.0, 2.0, 4.0), (1.1, 1.8, 4.0)
    for turn, values in ((0, first), (1, second)):
        for arch, ms in zip(archs, values, strict=False):
            profile.add("network", SPACE.fingerprint, arch, turn, 0.2, number(ms))
    profile.add("network", SPACE.fingerprint, archs[3], 0, 0.2, number(7.0))  # measured once only
    assert profile.retest_error(SPACE) == pytest.approx((0.1 + 2 / 1.8 - 1 + 0.0) / 3, rel=1e-9)


def test_a_profile_can_be_read_where_its_device_is_not(tmp_path):
    filled(tmp_path / "p.jsonl", 2)
    header, *rest = (tmp_path / "p.jsonl").read_text().splitlines(keepends=True)
    values = json.loads(header)
    values["fingerprint"]["processor"] = "another"
    (tmp_path / "p.jsonl").write_text("".join([json.dumps(values) + "\n", *rest]))
    found = Profile.load(tmp_path / "p.jsonl")
    assert found.fingerprint["processor"] == "another"
    assert found.device == "here"
    assert len(found.latencies("network")) == 2
    with pytest.raises(UserError, match="another processor"):
        Profile.load(tmp_path / "p.jsonl", HERE)


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
        measured = profile.latencies("network")
        for (arch, ms), left_out in zip(measured.items(), predictor.left_out, strict=True):
            (found,) = predictor.predict([arch])
            scale = left_out / found.latency_ms  # the interval around what was predicted without this network
            inside += scale * found.low_ms <= ms <= scale * found.high_ms
        assert inside >= 36
        error = predictor.error(0.02)
        relative = np.abs(predictor.left_out / list(measured.values()) - 1)
        assert error.mape == pytest.approx(relative.mean(), rel=1e-12)
        assert error.within_10_percent == np.mean(relative <= 0.1)
        assert error.retest == 0.02

    def test_a_slow_second_turn_of_everything_changes_nothing(self, tmp_path):
        profile = filled(tmp_path / "p.jsonl")
        for arch in calibration_archs(SPACE, 16):
            profile.add("network", SPACE.fingerprint, arch, 1, 0.4, number(2 * network_ms(arch)))
        assert make_predictor("lookup_table", profile, SPACE).error(None).mape < 1e-4

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
