"""What single predictors are good for, reconciliation and transfer, on devices that the test invents."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement, summarize
from hwnas.latency.predictor import (
    LatencyPredictor,
    LatencyTable,
    Networks,
    best_predictor,
    conformal_span,
    load_predictor,
    make_predictor,
)  # fmt: skip
from hwnas.latency.profile import EMPTY, Profile, calibration_archs, op_arch
from hwnas.latency.reconcile import reconcile
from hwnas.latency.tabulate import tabulate
from hwnas.latency.transfer import Transfer
from hwnas.lower.cost import op_macs_params
from hwnas.lower.features import features, saved_kernels
from hwnas.placements import placed_ops
from hwnas.report.latency import predictor_report, reconciliation_table
from hwnas.spaces import make_space

HERE = Device(name="here")
CELLS = make_space("nasbench201(input=(3,12,12),channels=8,cells=2)")
CHAINS = make_space(
    "mobilenet(input=(3,16,16),classes=3,stages=((16,2,2),(24,2,2)),kernels=(3,5),expansions=(2,3),depths=(1,2),head=0)"
)


def number(ms: float) -> Measurement:
    return summarize([ms] * 3, 1, True, 0.0)


def own_ms(placed, speed: float = 1.0) -> float:
    """Of an op by itself: a smooth function of what it does."""
    macs, params = op_macs_params(placed)
    return speed * (2e-3 + 3e-7 * macs) + 2e-7 * params + 4e-7 * placed.output.elements


def in_place_ms(arch: Arch, speed: float = 1.0) -> float:
    """Depthwise by kernel costs less in its place, fused kernels save their pass, and weights beyond 64 KB are cold."""
    found = features(arch)
    total = sum(n * own_ms(op, speed) * (0.7 if getattr(op.op, "kernel", 3) == 5 else 1.0) for op, n in found.ops.items())
    saved = sum(n * 2e-3 for kernel, n in saved_kernels(arch).items() if kernel.launches)
    return 0.01 + total - saved + 3e-7 * max(0, found.weight_bytes - 65536)


def filled(path: Path, space=CHAINS, networks: int = 60, speed: float = 1.0, noise: float = 0.0) -> Profile:
    profile = Profile.open(path, HERE)
    profile.add("empty", "", EMPTY, 0, 0.2, number(0.005))
    for placed in placed_ops(space):
        profile.add("op", "", op_arch(placed), 0, 0.2, number(0.005 + own_ms(placed, speed)))
    for arch in calibration_archs(space, networks):
        rng = random.Random(arch.key)
        ms = in_place_ms(arch, speed) * (1 + noise * rng.gauss(0, 1))
        profile.add("network", space.fingerprint, arch, 0, 0.2, number(ms))
    return profile


@pytest.mark.parametrize("space", [CHAINS, CELLS], ids=lambda s: s.name)
def test_networks_teach_the_gaussian_process_what_isolated_ops_hide(tmp_path, space):
    profile = filled(tmp_path / "p.jsonl", space)
    rng = random.Random(3)
    fresh = [space.decode(space.sample(rng)) for _ in range(40)]
    held_out = Networks(fresh, np.array([in_place_ms(arch) for arch in fresh]))
    errors = {n: make_predictor(n, profile, space).judge(held_out, None).mape for n in ("gaussian_process", "lookup_table")}
    assert errors["gaussian_process"] < 0.02
    assert errors["gaussian_process"] < 0.5 * errors["lookup_table"]


def test_the_best_is_chosen_without_a_look_at_what_is_held_out(tmp_path):
    profile = filled(tmp_path / "p.jsonl", noise=0.01)
    fitted, held_out = Networks.of(profile, [CHAINS]).split(0.25)
    assert {a.key for a in fitted.archs}.isdisjoint(a.key for a in held_out.archs)
    assert (len(fitted.archs), len(held_out.archs)) == (45, 15)
    found = best_predictor(LatencyTable.of(profile), fitted)
    mapes = [p.error(None).mape for p in found.values()]
    assert mapes == sorted(mapes)
    assert next(iter(found)) == "gaussian_process"
    judged = found["gaussian_process"].judge(held_out, 0.01)
    assert judged.networks == 15
    assert judged.coverage is not None
    report = predictor_report("here", {"runtime": "r"}, ["s"], {"a": judged}, {"a": judged}, reconcile(profile, [CHAINS]))
    assert "## Where the time goes" in report
    assert f"{judged.mape:.2%}" in report


def test_the_interval_covers_networks_never_seen(tmp_path):
    """Nine in ten on average, over many draws of noise; conformal intervals may be wider, not much narrower."""
    profile = filled(tmp_path / "p.jsonl", networks=140, noise=0.05)
    everything, inside = Networks.of(profile, [CHAINS]), []
    table = LatencyTable.of(profile)
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(140)
        predictor = LatencyPredictor.fit("lookup_table", table, everything.take(order[:60]))
        inside.append(predictor.judge(everything.take(order[60:]), None).coverage)
    assert 0.83 <= np.mean(inside) <= 0.99


def test_the_ranks_of_a_conformal_interval():
    ratios = np.arange(1, 101) / 50.0  # 0.02 to 2
    assert conformal_span(ratios) == pytest.approx((5 / 50, 96 / 50))  # floor(0.05 * 101) = 5 from either end
    assert conformal_span(ratios[:19]) == (pytest.approx(0.02), 1.0)  # the prediction itself stays inside
    assert conformal_span(np.array([1.2, 1.1, 1.3])) == pytest.approx((1.0, 1.3))


def test_trees_price_ops_that_were_never_profiled(tmp_path):
    profile = filled(tmp_path / "p.jsonl")
    other = make_space(
        "mobilenet(input=(3,16,16),classes=3,stages=((16,2,2),(32,2,2)),kernels=(3,5),expansions=(2,3),depths=(1,2),head=0)"
    )
    arch = other.decode(other.sample(random.Random(1)))
    (found,) = make_predictor("kernel_trees", profile, CHAINS).predict([arch])
    assert found.latency_ms == pytest.approx(in_place_ms(arch), rel=0.35)
    with pytest.raises(UserError, match="lacks an op"):
        make_predictor("gaussian_process", profile, CHAINS).predict([arch])


def test_one_model_for_several_spaces(tmp_path):
    wider = make_space(
        "mobilenet(input=(3,24,24),classes=3,stages=((16,2,2),(24,2,2)),kernels=(3,5),expansions=(2,3),depths=(1,2),head=0)"
    )
    filled(tmp_path / "p.jsonl", CHAINS, 20)
    profile = filled(tmp_path / "p.jsonl", wider, 20)
    predictor = make_predictor("gaussian_process", profile, [CHAINS, wider])
    assert len(predictor.networks.archs) == 40
    for space in (CHAINS, wider):
        arch = space.decode(space.sample(random.Random(9)))
        assert predictor.predict([arch])[0].latency_ms == pytest.approx(in_place_ms(arch), rel=0.05)


def test_reconciliation_adds_up(tmp_path):
    profile = filled(tmp_path / "p.jsonl", CELLS, 12)
    found = reconcile(profile, [CELLS])
    assert found is not None
    assert found.isolated_ms - found.calls_ms + found.in_place_ms == pytest.approx(found.end_to_end_ms)
    archs = calibration_archs(CELLS, 12)
    assert found.end_to_end_ms == pytest.approx(np.mean([in_place_ms(a) for a in archs]), rel=1e-4)
    ops = [sum(n * (0.005 + own_ms(op)) for op, n in features(a).ops.items()) for a in archs]
    assert found.isolated_ms == pytest.approx(np.mean(ops), rel=1e-3)
    assert sum(found.by_kind.values()) == pytest.approx(found.isolated_ms - found.calls_ms - 0.005, rel=1e-3)
    assert list(found.by_kind.values()) == sorted(found.by_kind.values(), reverse=True)
    assert reconciliation_table(found).row_count == 4 + len(found.by_kind)
    assert reconcile(profile, [CHAINS]) is None


@pytest.mark.parametrize("name", ["gaussian_process", "lookup_table", "kernel_trees", "macs"])
@pytest.mark.parametrize(
    "text",
    [
        "mobilenet(input=(3,16,16),classes=3,stages=((16,2,2),(24,2,2)),kernels=(3,5),expansions=(2,3),depths=(1,2),head=0)",
        "mobilenet(input=(3,16,16),classes=3,stages=((16,3,2),),kernels=(3,),expansions=(2,3),depths=(3,),widths=(0.5,1.0,2.0))",
        "chain(input=(1,12,12),classes=3,layers=2,widths=(4,8))",
    ],
)
def test_a_table_predicts_as_its_predictor(tmp_path, text, name):
    space = make_space(text)
    predictor = make_predictor(name, filled(tmp_path / "p.jsonl", space, 12), space)
    table, rng = tabulate(predictor, space), random.Random(5)
    genotypes = [space.sample(rng) for _ in range(60)]
    found = table.predict(np.array(genotypes, np.uint8))
    expected = [p.latency_ms for p in predictor.predict([space.decode(g) for g in genotypes])]
    assert found == pytest.approx(expected, rel=1e-5)
    assert table.predict(np.zeros((0, len(space.choices)), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="takes 0 to"):
        table.predict(np.full((1, len(space.choices)), 200, np.uint8))


def test_cells_have_no_table(tmp_path):
    predictor = make_predictor("lookup_table", filled(tmp_path / "p.jsonl", CELLS, 6), CELLS)
    with pytest.raises(UserError, match="only chains"):
        tabulate(predictor, CELLS)
    deep = make_space("chain(input=(1,12,12),classes=3,layers=4)")  # each layer's input may come from any before it
    with pytest.raises(UserError, match=r"at most 256 entries|too many choices"):
        tabulate(predictor, deep)


class TestTransfer:
    def known(self, folder: Path) -> list[LatencyPredictor]:
        return [
            make_predictor("gaussian_process", filled(folder / f"{i}.jsonl", speed=speed), CHAINS)
            for i, speed in enumerate((0.3, 1.0, 3.0, 6.0))
        ]

    def test_a_new_device_is_known_from_few_networks(self, tmp_path):
        transfer = Transfer(self.known(tmp_path), CHAINS, candidates=60)
        chosen = transfer.choose(12)
        assert len({a.key for a in chosen}) == 12
        predictor = transfer.fit(chosen, np.array([in_place_ms(a, 1.8) for a in chosen]))
        rng = random.Random(4)
        fresh = [CHAINS.decode(CHAINS.sample(rng)) for _ in range(30)]
        judged = predictor.judge(Networks(fresh, np.array([in_place_ms(a, 1.8) for a in fresh])), None)
        assert judged.mape < 0.05
        assert judged.spearman is not None
        assert judged.spearman > 0.93
        assert predictor.error(None).networks == 12
        predictor.save(tmp_path / "t.json", {"device": "new"})
        again, about = load_predictor(tmp_path / "t.json")
        assert about["device"] == "new"
        for a, b in zip(predictor.predict(fresh), again.predict(fresh), strict=True):
            assert (b.low_ms, b.latency_ms, b.high_ms) == pytest.approx((a.low_ms, a.latency_ms, a.high_ms), rel=1e-9)

    def test_what_cannot_be_transferred(self, tmp_path):
        known = self.known(tmp_path)
        with pytest.raises(UserError, match="at least 2 known devices"):
            Transfer(known[:1], CHAINS)
        with pytest.raises(UserError, match="lacks an op"):
            Transfer(known, CELLS)
        transfer = Transfer(known, CHAINS, candidates=20)
        for samples in (2, 21):
            with pytest.raises(UserError, match="measures 3 to 20"):
                transfer.choose(samples)
