"""What every file in hwnas/latency/predictors must keep. A new predictor is tested by existing."""

from __future__ import annotations

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
from hwnas.latency.predictor import LatencyPredictor, make_predictor
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


@pytest.fixture(params=NAMES)
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
        assert make_predictor(plugin, profiles[name, world], SPACES[name]).predict(some) == together
        assert predictor.predict([]) == []


def test_a_profile_read_back_gives_the_same_predictor(fitted, request, profiles):
    """To the six digits that a profile keeps."""
    plugin = request.node.callspec.params["fitted"]
    for (name, world), predictor in fitted.items():
        again = make_predictor(plugin, Profile.load(profiles[name, world].path, HERE), SPACES[name])
        for a, b in zip(predictor.predict(archs(SPACES[name], 5)), again.predict(archs(SPACES[name], 5)), strict=True):
            assert a.latency_ms == pytest.approx(b.latency_ms, rel=1e-3)


def test_the_spelling_of_a_network_does_not_matter(fitted):
    for (name, _), predictor in fitted.items():
        for arch in archs(SPACES[name], 10, seed=2):
            assert predictor.predict([arch]) == predictor.predict([simplify(arch)])


def test_the_interval_holds_nine_in_ten_of_the_left_out(fitted):
    """Against the definition: the middle nine tenths of measured over left-out prediction, and the prediction itself."""
    for predictor in fitted.values():
        found = predictor.predict([predictor.profile.rows("network")[0].arch])[0]
        low, high = np.quantile(predictor._y / predictor._fit.left_out, [0.05, 0.95])
        assert found.low_ms == pytest.approx(found.latency_ms * min(1, low), rel=1e-9)
        assert found.high_ms == pytest.approx(found.latency_ms * max(1, high), rel=1e-9)
        spread = found.high_ms / found.low_ms - 1
        error = predictor.error(0.01)
        assert error.networks == len({r.arch.key for r in predictor.profile.rows("network")})
        assert 0 <= error.mape < math.inf
        assert 0 <= error.within_10_percent <= 1
        assert error.retest == 0.01
        if spread <= 0.1:  # then at least as many are within 10 %
            assert error.within_10_percent >= 0.9 - 1 / error.networks


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
