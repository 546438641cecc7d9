"""The main job end to end on scikit-learn's digits, on a device where nothing takes time."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from fake_device import install, latency_ms
from runs import BUDGET, FILES, all_finite, answer, run, small_space

import hwnas.compile
from hwnas.compile import compile_network
from hwnas.data import load_data
from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.measure import Measured, summarize
from hwnas.latency.quantize import is_quantized
from hwnas.latency.session import Session
from hwnas.latency.verify import verify
from hwnas.lower.cost import cost
from hwnas.lower.onnx import arch_text, to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.report.run import RunFolder, read_weights
from hwnas.supernet.checkpoint import load_checkpoint
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.supernet import Supernet

pytestmark = pytest.mark.usefixtures("fake_device")


def archs():
    space = small_space()
    return [space.decode(g) for g in product(*(range(len(c.options)) for c in space.choices))]


def test_an_int8_device_gets_the_model_quantised_and_judged_as_it_is(folder):
    report = run(folder, device="cpu-int8", profile=folder / "int8", epochs=10)
    delivered, exported = ((folder / "run" / name).read_bytes() for name in ("model.onnx", "model_float32.onnx"))
    assert is_quantized(onnx.load_from_string(delivered))
    assert not is_quantized(onnx.load_from_string(exported))
    assert arch_text(delivered) == arch_text(exported) == (folder / "run/arch.txt").read_text()
    split = load_data("digits", limit=120).test.split
    for model, found in ((delivered, report.test), (exported, report.float32_test)):
        answers = Session(model, Device(name="here")).predict(split.images).argmax(1)
        assert found.accuracy == pytest.approx((answers == split.labels).mean(), abs=2 / len(split.labels))
    assert report.test.accuracy > report.float32_test.accuracy - 0.1
    assert report.test != report.float32_test


def test_the_run_folder_holds_what_is_documented_and_no_pickle(undisturbed):
    assert {p.name for p in (undisturbed / "run").iterdir()} == FILES
    for path in (undisturbed / "run").iterdir():
        head = path.read_bytes()[:4]
        assert head[:1] != b"\x80"  # a pickle's first opcode
        assert head != b"PK\x03\x04"  # a zip, such as torch.save writes


def test_the_report_says_what_the_files_hold(undisturbed):
    path = undisturbed / "run"
    report = RunFolder(path).read_report()
    arch = read_arch((path / "arch.txt").read_text())
    model, weights = (path / "model.onnx").read_bytes(), read_weights(path / "weights.safetensors")
    assert report.key == arch.key == simplify(arch).key == read_arch(arch_text(model)).key
    assert arch.key in {a.key for a in map(simplify, archs())}
    assert (report.macs, report.params, report.peak_bytes) == tuple(vars(cost(arch)).values())
    assert sorted(weights) == sorted(name for name, _ in arch.weights())
    assert all_finite(path)

    data = load_data("digits", seed=0, limit=120)
    network = to_torch(arch, weights).eval()
    for split, quality in ((data.test.split, report.test), (data.search.validation, report.validation)):
        found = evaluate(network, split)
        assert (found.accuracy, found.macro_f1, found.loss) == (quality.accuracy, quality.macro_f1, quality.loss)
    with torch.no_grad():
        expected = network(torch.from_numpy(data.test.split.images)).numpy()
    runtime = Session(model, Device(name="here")).predict(data.test.split.images)
    assert np.abs(runtime - expected).max() <= 1e-4 * np.abs(expected).max()
    assert 0 <= report.onnx_max_error <= 1e-4

    assert report.succeeded
    assert report.measured.latency_ms == pytest.approx(latency_ms(arch), rel=1e-12)
    assert report.measured.latency_ms <= 0.06
    assert report.predicted.latency_ms == pytest.approx(latency_ms(arch), rel=1e-6)  # linear in MACs: learnt exactly
    assert report.predicted.retest_error == 0
    assert report.config.budget == {"latency_ms": 0.06}
    assert set(report.seconds) == {"profile", "supernet", "search", "finalists", "training", "measuring", "testing"}
    assert report.versions["torch"] == torch.__version__
    assert report.fingerprint["threads"] == "1"

    header, *rows = map(json.loads, (path / "history.jsonl").read_text().splitlines())
    assert report.evaluated == len(rows) == 10
    assert header["seed"] == 0
    space = small_space()
    for row in rows:
        candidate = simplify(space.decode(row["genotype"]))
        assert row["key"] == candidate.key
        assert row["metrics"]["macs"] == cost(candidate).macs
        assert row["metrics"]["latency_ms"] == pytest.approx(latency_ms(candidate), rel=1e-6)
        assert row["metrics"]["latency_ms"] <= 0.06
    finalists = [json.loads(line) for line in (path / "finalists.jsonl").read_text().splitlines()[1:]]
    ranks = {r["key"]: (r["accuracy"], -r["loss"]) for r in rows}
    best = sorted(ranks, key=ranks.__getitem__, reverse=True)[:8]
    assert [f["key"] for f in finalists] == [a.key for a in report.finalists] == best
    assert report.key == best[0]
    assert report.choices == space.describe(report.finalists[0].genotype)


def test_the_same_question_has_the_same_answer(undisturbed, folder):
    run(folder)
    assert answer(folder / "run") == answer(undisturbed / "run")


def test_the_run_that_makes_the_profile_is_the_run_that_finds_it(undisturbed):
    """Predictions come from what is on the disk, or a resumed run would not replay the run that it continues."""
    assert answer(undisturbed / "first") == answer(undisturbed / "run")


def test_another_seed_is_another_search(undisturbed, folder):
    run(folder, seed=1)
    assert (folder / "run/history.jsonl").read_text() != (undisturbed / "run/history.jsonl").read_text()


class Poison:
    """What the search must not touch."""

    def __init__(self, split):
        self._split = split
        self.open = False

    @property
    def split(self):
        assert self.open, "the test split was read before the winner was trained"
        return self._split


def test_the_search_never_sees_the_test_split(undisturbed, folder, monkeypatch):
    real_load, real_train = hwnas.compile.load_data, hwnas.compile.winner.train_network
    poison = []

    def poisoned(*args, **kwargs):
        dataset = real_load(*args, **kwargs)
        poison.append(Poison(dataset.test.split))
        object.__setattr__(dataset, "test", poison[0])
        return dataset

    def trains(*args, **kwargs):
        found = real_train(*args, **kwargs)
        poison[0].open = True
        return found

    monkeypatch.setattr(hwnas.compile, "load_data", poisoned)
    monkeypatch.setattr(hwnas.compile.winner, "train_network", trains)
    run(folder)
    assert answer(folder / "run") == answer(undisturbed / "run")
    assert len(poison) == 1


def test_a_test_split_of_noise_changes_nothing_but_its_own_score(undisturbed, folder, monkeypatch):
    real = hwnas.compile.load_data

    def noisy(*args, **kwargs):
        dataset = real(*args, **kwargs)
        split = dataset.test.split
        split.images[:] = np.random.default_rng(0).standard_normal(split.images.shape)
        split.labels[:] = np.roll(split.labels, 1)
        return dataset

    monkeypatch.setattr(hwnas.compile, "load_data", noisy)
    report = run(folder)
    expected = answer(undisturbed / "run")
    found = answer(folder / "run")
    assert found[1:] == expected[1:]
    assert report.test != RunFolder(undisturbed / "run").read_report().test


def test_inherited_weights_are_where_training_starts(folder, monkeypatch):
    seen = []
    real = hwnas.compile.winner.train_network

    def trains(network, *args, **kwargs):
        seen.append(network.weights())
        return real(network, *args, **kwargs)

    monkeypatch.setattr(hwnas.compile.winner, "train_network", trains)
    reports = [run(folder, f"run{inherit}", inherit=inherit) for inherit in (True, False)]
    assert reports[0].key == reports[1].key
    supernet = Supernet(small_space(), 0)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1)
    assert load_checkpoint(folder / "runTrue/supernet.safetensors", supernet, optimizer) == 2
    inherited = derive(supernet, tuple(reports[0].finalists[0].genotype))
    fresh = init_weights(simplify(small_space().decode(reports[0].finalists[0].genotype)), 0)
    for expected, found in zip((inherited, fresh), seen, strict=True):
        assert sorted(expected) == sorted(found)
        assert all(np.array_equal(expected[n], found[n]) for n in expected)


def test_a_report_on_a_device_where_all_networks_take_as_long_can_be_read_back(tmp_path, monkeypatch):
    """Then there is no rank correlation, and NaN is no JSON."""

    def constant(models, device, **arguments):
        return Measured([summarize([0.05] * 3, 1, True, 0.0)] * len(models), summarize([0.2] * 3, 1, True, 0.0))

    install(monkeypatch.setattr, constant)
    report = run(tmp_path, evaluations=2, supernet_epochs=1, epochs=1)
    again = RunFolder(tmp_path / "run").read_report()
    assert again.predicted.latency_ms == report.predicted.latency_ms == pytest.approx(0.05)
    text = (tmp_path / "run/report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_verify_refuses_a_model_of_other_weights():
    arch = simplify(archs()[0])
    network = to_torch(arch, seed=0)
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    assert 0 <= verify(to_onnx(arch, network.weights()).SerializeToString(), network, images) <= 1e-4
    with pytest.raises(RuntimeError, match="differs"):
        verify(to_onnx(arch, to_torch(arch, seed=1).weights()).SerializeToString(), network, images)
    with torch.no_grad():
        network.get_parameter(next(n for n, p in network.named_parameters() if p.dim() == 2)).fill_(math.nan)
    with pytest.raises(RuntimeError, match="differs"):
        verify(to_onnx(arch, network.weights()).SerializeToString(), network, images)


def test_watch_is_told_of_every_phase(folder):
    told = []
    run(folder, watch=lambda phase, done, total, note: told.append((phase, done, total)))
    ends = {}
    for phase, done, total in told:
        assert 0 <= done <= total
        assert done >= ends.get(phase, (0, 0))[0]
        ends[phase] = (done, total)
    assert {"supernet", "search", "finalists", "training", "measuring"} <= set(ends)
    assert all(done == total for done, total in ends.values())


def test_dense_data_is_searched_with_a_dense_chain(tmp_path):
    """Another space and no latency: cost alone."""
    report = compile_network(
        "chain(kind='dense', layers=2, widths=(8,16), activations=('relu',))", "digits", "cpu", "2kparams", tmp_path / "run",
        strategy="random", evaluations=3, supernet_epochs=1, epochs=1, limit=100,
    )  # fmt: skip
    assert report.succeeded
    assert report.params <= 2000
    assert report.predicted is None
    assert BUDGET not in report.config.budget


def test_a_warm_start_tries_first_what_a_finished_run_liked_and_remembers_it(undisturbed, folder):
    old = undisturbed / "run"
    rows = [json.loads(line) for line in (old / "history.jsonl").read_text().splitlines()[1:]]
    best: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda r: (-r["accuracy"], r["loss"])):
        best.setdefault(row["key"], row["genotype"])
    expected = list(best.values())
    run(folder, "warm", warm_start=old, evaluations=3, supernet_epochs=1, epochs=1)
    warm = [json.loads(line)["genotype"] for line in (folder / "warm" / "history.jsonl").read_text().splitlines()[1:]]
    assert warm == expected[:3]
    config = json.loads((folder / "warm" / "config.json").read_text())
    assert config["prior"] == expected  # so that the old run may be gone when this one is resumed
    with pytest.raises(UserError, match=r"needs a run's history; got .*nowhere.*; name the folder of a finished run"):
        run(folder, "cold", warm_start=folder / "nowhere")
