"""What every file in hwnas/latency/predictors must keep. A new predictor is tested by existing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from cases import build_space, space_arguments
from fake_device import latency_ms

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement, summarize
from hwnas.latency.predictor import LatencyPredictor, LatencyTable, Networks, load_predictor, make_predictor
from hwnas.latency.profile import EMPTY, Profile, calibration_archs, op_arch
from hwnas.placements import placed_ops
from hwnas.plugins import known
from hwnas.space import Space

HERE = Device(name="here")
NAMES = known("hwnas.latency.predictors")
SPACES = {name: build_space(name, space_arguments(name)[0]) for name in known("hwnas.spaces")}

# Latencies of networks that are easy, noisy and perverse: the larger the faster, and all the same.
WORLDS = {
    "linear": latency_ms,
    "noisy": lambda arch: latency_ms(arch) * random.Random(arch.key).uniform(0.5, 2.0),
    "inverse": lambda arch: 1 / (1 + 100 * latency_ms(arch)),
    "constant": lambda arch: 0.25,
}


def number(ms: float) -> Measurement:
    return summarize([ms] * 3, 1, True, 0.0)


def profile_of(path: Path, space: Space, world: str, networks: int = 12) -> Profile:
    profile = Profile.open(path / f"{space.name}-{world}.jsonl", HERE)
    profile.add("empty", "", EMPTY, 0, 0.2, number(0.005))
    for placed in placed_ops(space):
        profile.add("op", "", op_arch(placed), 0, 0.2, number(latency_ms(op_arch(placed))))
    for arch in calibration_archs(space, networks):
        profile.add("network", space.fingerprint, arch, 0, 0.2, number(WORLDS[world](arch)))
    return profile


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    small = {name: space for name, space in SPACES.items() if len(placed_ops(space)) <= 150}
    assert len(small) >= 2
    return {(name, world): profile_of(folder, space, world) for name, space in small.items() for world in WORLDS}


def archs(space: Space, count: int, seed: int = 1) -> list[Arch]:
    rng = random.Random(seed)
    return [space.decode(space.sample(rng)) for _ in range(count)]


@pytest.fixture(scope="module", params=NAMES)
def fitted(request, profiles) -> dict[tuple[str, str], LatencyPredictor]:
    return {key: make_predictor(request.param, profile, SPACES[key[0]]) for key, profile in profiles.items()}


def test_predictions_are_positive_finite_and_inside_their_interval(fitted):
    for (name, world), predictor in fitted.items():
        for found in predictor.predict(archs(SPACES[name], 15)):
            assert 0 < found.low_ms <= found.latency_ms <= found.high_ms < math.inf, (name, world)


def test_predictions_are_deterministic_and_of_each_arch_alone(fitted, request, profiles):
    plugin = request.node.callspec.params["fitted"]
    for (name, world), predictor in fitted.items():
        some = archs(SPACES[name], 6)
        together = predictor.predict(some)
        assert [p for arch in reversed(some) for p in predictor.predict([arch])] == together[::-1]
        if world == "noisy":
            assert make_predictor(plugin, profiles[name, world], SPACES[name]).predict(some) == together
        assert predictor.predict([]) == []


def test_a_profile_read_back_gives_the_same_predictor(fitted, request, profiles):
    """To the six digits that a profile keeps."""
    plugin = request.node.callspec.params["fitted"]
    for (name, world), predictor in [item for item in fitted.items() if item[0][1] == "noisy"]:
        again = make_predictor(plugin, Profile.load(profiles[name, world].path, HERE), SPACES[name])
        for a, b in zip(predictor.predict(archs(SPACES[name], 5)), again.predict(archs(SPACES[name], 5)), strict=True):
            assert a.latency_ms == pytest.approx(b.latency_ms, rel=1e-3)


def test_the_spelling_of_a_network_does_not_matter(fitted):
    for (name, _), predictor in fitted.items():
        for arch in archs(SPACES[name], 10, seed=2):
            assert predictor.predict([arch]) == predictor.predict([simplify(arch)])


def test_the_interval_holds_nine_in_ten_of_the_left_out(fitted):
    """Against the definition: the ratios of measured to left-out prediction at the ranks of a finite sample."""
    for (name, _), predictor in fitted.items():
        (found,) = predictor.predict(archs(SPACES[name], 1))
        y, left_out = predictor.networks.latency_ms, predictor.left_out
        ratios = sorted(y / left_out)
        assert len(ratios) == 12  # too few for a twentieth on each side: the extremes
        assert found.low_ms == pytest.approx(found.latency_ms * min(1, ratios[0]), rel=1e-9)
        assert found.high_ms == pytest.approx(found.latency_ms * max(1, ratios[-1]), rel=1e-9)
        error = predictor.error(0.01)
        assert error.networks == len(y)
        assert error.mape == pytest.approx(np.mean(np.abs(left_out / y - 1)), rel=1e-9)
        assert error.within_10_percent == np.mean(np.abs(left_out / y - 1) <= 0.1)
        assert error.within_5_percent <= error.within_10_percent
        assert error.retest == 0.01


def test_a_network_has_no_part_in_its_own_left_out_prediction(request, fitted, profiles):
    """Measured ten times slower, it is still predicted as before where it is left out."""
    plugin = request.node.callspec.params["fitted"]
    for key in [k for k in profiles if k[1] == "noisy"]:
        before = fitted[key]
        y = before.networks.latency_ms.copy()
        y[3] *= 10
        after = LatencyPredictor.fit(plugin, LatencyTable.of(profiles[key]), Networks(before.networks.archs, y))
        assert after.left_out[3] == pytest.approx(before.left_out[3], rel=1e-9)
        assert not np.allclose(after.left_out, before.left_out)


def test_a_saved_predictor_predicts_the_same(fitted, tmp_path):
    for (name, world), predictor in fitted.items():
        path = tmp_path / f"{name}-{world}.json"
        predictor.save(path, {"device": "here"})
        again, about = load_predictor(path)
        some = archs(SPACES[name], 8)
        for a, b in zip(predictor.predict(some), again.predict(some), strict=True):
            assert b.latency_ms == pytest.approx(a.latency_ms, rel=1e-9)
            assert (b.low_ms, b.high_ms) == pytest.approx((a.low_ms, a.high_ms), rel=1e-9)
        assert about["device"] == "here"
        assert about["predictor"] == again.name == predictor.name


def test_a_damaged_predictor_is_refused_in_one_line(request, fitted, tmp_path):
    predictor = fitted["nasbench201", "linear"]
    predictor.save(tmp_path / "p.json", {})
    whole = json.loads((tmp_path / "p.json").read_text())
    damaged = [
        "", "[]", "{}", json.dumps({**whole, "format": "hwnas predictor 0"}), json.dumps({**whole, "span": [1.1, 1.2]}),
        json.dumps({**whole, "predictor": "nosuch"}), json.dumps({**whole, "model": {}}), json.dumps({**whole, "model": []}),
        json.dumps({**whole, "floor_ms": "much"}), json.dumps({k: v for k, v in whole.items() if k != "span"}),
    ]  # fmt: skip
    for text in damaged:
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(UserError) as caught:
            load_predictor(tmp_path / "p.json")
        assert "\n" not in str(caught.value)


def test_constant_latencies_are_predicted_exactly(fitted):
    for (name, world), predictor in fitted.items():
        if world == "constant":
            for found in predictor.predict(archs(SPACES[name], 5)):
                assert found.latency_ms == pytest.approx(0.25, rel=1e-6)


def test_latencies_linear_in_macs_are_predicted_exactly(profiles):
    for (name, world), profile in profiles.items():
        if world == "linear":
            predictor = make_predictor("macs", profile, SPACES[name])
            for arch in archs(SPACES[name], 10):
                assert predictor.predict([arch])[0].latency_ms == pytest.approx(latency_ms(arch), rel=1e-9)


@pytest.mark.parametrize("plugin", NAMES)
def test_too_few_networks_are_refused_with_the_remedy(tmp_path, plugin):
    space = SPACES["nasbench201"]
    with pytest.raises(UserError, match="hwnas profile"):
        make_predictor(plugin, profile_of(tmp_path, space, "linear", networks=3), space)


@pytest.mark.parametrize("plugin", NAMES)
def test_a_profile_of_another_space_is_refused(profiles, plugin):
    with pytest.raises(UserError, match="hwnas profile"):
        make_predictor(plugin, profiles["nasbench201", "linear"], SPACES["mobilenet"])
