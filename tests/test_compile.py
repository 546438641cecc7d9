"""The main job end to end on scikit-learn's digits, on a device where nothing takes time."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_device import at_moments, install, latency_ms
from fake_device import measure as fake_measure
from runs import BUDGET, FILES, SPACE, all_finite, answer, run, small_space

import hwnas.compile
from hwnas.compile import compile_network
from hwnas.data import load_data
from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.measure import Measured, summarize
from hwnas.latency.session import Session, providers
from hwnas.latency.verify import verify
from hwnas.lower.cost import cost
from hwnas.lower.onnx import arch_text, to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.report.run import RunFolder, read_weights
from hwnas.search.budget import Budget
from hwnas.supernet.checkpoint import load_checkpoint
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.supernet import Supernet


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    install(monkeypatch.setattr)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a profile, of `first`, which made the profile, and of `run`. No test may change it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        run(folder, "first")
        run(folder)
    return folder


@pytest.fixture
def folder(undisturbed, tmp_path) -> Path:
    """A folder with the profile, and no run yet."""
    shutil.copytree(undisturbed / "profile", tmp_path / "profile")
    return tmp_path


class Boom(BaseException):
    """As a kill would be: nothing in hwnas catches it."""


def archs():
    space = small_space()
    return [space.decode(g) for g in product(*(range(len(c.options)) for c in space.choices))]


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


def moments(folder: Path, monkeypatch) -> int:
    """How many steps of training and writes a run takes."""
    passed = []
    with monkeypatch.context() as patch:
        at_moments(patch.setattr, lambda: passed.append(1))
        run(folder, "counted")
    return len(passed)


def test_stopped_in_every_phase_and_resumed_it_gives_the_same_answer(undisturbed, folder, monkeypatch):
    """Stopped before a step or a write, once in each phase and then twice at random; then let through."""
    total = moments(folder, monkeypatch)
    rng = random.Random(0)
    stops = [1, 2, *sorted(rng.sample(range(3, total), 9)), total - 3, total - 2, total - 1, total]
    phases = set()
    for stop in stops:
        name = f"stopped{stop}"
        passed = 0

        def tick(stop=stop):
            nonlocal passed
            passed += 1
            if passed == stop:
                raise Boom

        with monkeypatch.context() as patch:
            at_moments(patch.setattr, tick)
            with pytest.raises(Boom):
                run(folder, name)
        left = {p.name for p in (folder / name).iterdir()} if (folder / name).exists() else set()
        assert left < FILES
        phases.add(frozenset(left))
        run(folder, name, resume=True)
        assert answer(folder / name) == answer(undisturbed / "run")
        shutil.rmtree(folder / name)
    assert len(phases) >= 6


@pytest.mark.parametrize(
    "phase", ["profile_space", "make_predictor", "train_supernet", "run_search", "measure", "train_network", "verify"]
)
def test_an_error_in_a_phase_leaves_what_resume_continues(undisturbed, folder, monkeypatch, phase):
    with monkeypatch.context() as patch:

        def fails(*args, **kwargs):
            raise Boom

        patch.setattr(hwnas.compile, phase, fails)
        with pytest.raises(Boom):
            run(folder)
    assert not (folder / "run/report.json").exists()
    run(folder, resume=True)
    assert answer(folder / "run") == answer(undisturbed / "run")


def test_a_finished_run_is_not_run_again(undisturbed, folder, monkeypatch):
    shutil.copytree(undisturbed / "run", folder / "run")
    at_moments(monkeypatch.setattr, lambda: pytest.fail("it wrote or trained"))
    assert run(folder, resume=True) == RunFolder(undisturbed / "run").read_report()


def test_a_torn_history_is_resumed(undisturbed, folder):
    shutil.copytree(undisturbed / "run", folder / "run")
    for name in ("report.json", "model.onnx", "arch.txt", "weights.safetensors"):
        (folder / "run" / name).unlink()
    for name, rows in (("history.jsonl", 6), ("finalists.jsonl", 2)):
        lines = (folder / "run" / name).read_text().splitlines(keepends=True)
        (folder / "run" / name).write_text("".join(lines[:rows]) + lines[rows][:17])
    run(folder, resume=True)
    assert answer(folder / "run") == answer(undisturbed / "run")


def test_profiling_meanwhile_does_not_change_a_resumed_run(undisturbed, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(hwnas.compile, "run_search", lambda *args: (_ for _ in ()).throw(Boom()))
        with pytest.raises(Boom):
            run(folder)
    lines = (folder / "profile/profile.jsonl").read_text().splitlines(keepends=True)
    slower = [json.dumps({**r, "latency_ms": 2 * r["latency_ms"], "canary_ms": 0.1}) for r in map(json.loads, lines[1:])]
    (folder / "profile/profile.jsonl").write_text("".join(lines) + "".join(line + "\n" for line in slower))
    run(folder, resume=True)
    assert answer(folder / "run") == answer(undisturbed / "run")


def test_an_existing_folder_is_refused_and_left_alone(undisturbed, folder):
    shutil.copytree(undisturbed / "run", folder / "run")
    before = {p.name: p.read_bytes() for p in (folder / "run").iterdir()}
    with pytest.raises(UserError, match=r"already exists.*--resume"):
        run(folder)
    assert {p.name: p.read_bytes() for p in (folder / "run").iterdir()} == before

    (folder / "other").mkdir()
    (folder / "other/notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    for name in ("other", "file"):
        for resume in (False, True):
            with pytest.raises(UserError, match="holds no run"):
                run(folder, name, resume=resume)
    assert [p.name for p in (folder / "other").iterdir()] == ["notes.txt"]


def test_an_empty_folder_may_be_used(folder):
    (folder / "run").mkdir()
    assert run(folder, evaluations=1, supernet_epochs=1, epochs=1).evaluated == 1


CHANGES = {
    "space": SPACE.replace("16", "24"),
    "budget": "0.07ms",
    "strategy": "random",
    "predictor": "macs",
    "evaluations": 11,
    "supernet_epochs": 3,
    "sampling": "sandwich",
    "epochs": 3,
    "inherit": True,
    "size": 9,
    "limit": 130,
    "seed": 1,
    "device": "cpu2",
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_resuming_with_another_question_names_the_difference(undisturbed, folder, field, finished):
    shutil.copytree(undisturbed / "run", folder / "run")
    if not finished:
        (folder / "run/report.json").unlink()
    before = {p.name: p.read_bytes() for p in (folder / "run").iterdir()}
    with pytest.raises(UserError, match=f"another {field.replace('_', ' ')}") as caught:
        run(folder, resume=True, **{field: CHANGES[field]})
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in (folder / "run").iterdir()} == before


def test_a_run_folder_whose_config_is_damaged_is_refused(undisturbed, folder):
    for content in (b"", b"{", b"{}", b"[]", b"\xff"):
        shutil.copytree(undisturbed / "run", folder / "run", dirs_exist_ok=True)
        (folder / "run/config.json").write_bytes(content)
        with pytest.raises(UserError) as caught:
            run(folder, resume=True)
        assert "\n" not in str(caught.value)


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
    monkeypatch.setattr(hwnas.compile, "train_supernet", lambda *args, **kwargs: (_ for _ in ()).throw(Boom()))
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


def slowed(factor):
    """A device that is slower than its profile said: by `factor` of an arch and of how many are measured together."""

    def measure(models, device, **arguments):
        found = fake_measure(models, device, **arguments)
        factors = [factor(read_arch(arch_text(model)), len(models)) for model in models]
        slow = [summarize([m.latency_ms * f] * 3, 1, True, 0.0) for m, f in zip(found.models, factors, strict=True)]
        return Measured(slow, found.canary)

    return measure


def test_a_missed_budget_is_said_with_what_was_tried(folder, monkeypatch):
    monkeypatch.setattr(hwnas.compile, "measure", slowed(lambda arch, n: 1.5))
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
    monkeypatch.setattr(hwnas.compile, "measure", slowed(lambda arch, n: 3.0 if arch.key in slow else 1.0))
    report = run(folder)
    assert report.succeeded
    assert report.key == ranked[2]
    assert [a.exceeds_by > 0 for a in report.finalists][:3] == [True, True, False]


def test_a_finalist_that_is_slower_once_trained_makes_room_for_the_next(undisturbed, folder, monkeypatch):
    ranked = [a.key for a in RunFolder(undisturbed / "run").read_report().finalists]
    monkeypatch.setattr(
        hwnas.compile, "measure", slowed(lambda arch, n: 2.0 if n == 1 and arch.key == ranked[0] else 1.0)
    )  # fmt: skip
    report = run(folder)
    assert report.succeeded
    assert report.key == ranked[1]
    assert read_arch((folder / "run/arch.txt").read_text()).key == ranked[1]
    assert read_arch(arch_text((folder / "run/model.onnx").read_bytes())).key == ranked[1]
    first = next(a for a in report.finalists if a.key == ranked[0])
    assert first.exceeds_by == pytest.approx(first.measured_ms / 0.06 - 1) or first.exceeds_by == 0


def test_a_miss_that_resume_meets_again_is_the_same_miss(folder, monkeypatch):
    monkeypatch.setattr(hwnas.compile, "measure", slowed(lambda arch, n: 1.5))
    with monkeypatch.context() as patch:
        patch.setattr(hwnas.compile, "train_network", lambda *args, **kwargs: (_ for _ in ()).throw(Boom()))
        with pytest.raises(Boom):
            run(folder)
    resumed = run(folder, resume=True)
    whole = run(folder, "whole")
    assert (resumed.key, resumed.finalists, resumed.succeeded) == (whole.key, whole.finalists, False)


@pytest.mark.parametrize("writes", [1, 2, 5, 9, 14, 20, 24])
def test_a_full_disk_leaves_the_previous_state(undisturbed, folder, monkeypatch, writes):
    """From some write on the disk is full; what was whole before is whole, and with space again the run ends as ever."""
    count, real = 0, os.fsync

    def full(handle):
        nonlocal count
        count += 1
        if count >= writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="free some space") as caught:
        run(folder)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(os, "fsync", real)
    left = {p.name for p in (folder / "run").iterdir()} if (folder / "run").exists() else set()
    assert left <= FILES  # nothing half-written lies about
    for name in left & {"history.jsonl", "finalists.jsonl"}:
        content = (folder / "run" / name).read_text()
        assert content.endswith("\n")
        assert all(isinstance(json.loads(line), dict) for line in content.splitlines())
    run(folder, resume=True)
    assert answer(folder / "run") == answer(undisturbed / "run")


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
    real_load, real_train = hwnas.compile.load_data, hwnas.compile.train_network
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
    monkeypatch.setattr(hwnas.compile, "train_network", trains)
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
    real = hwnas.compile.train_network

    def trains(network, *args, **kwargs):
        seen.append(network.weights())
        return real(network, *args, **kwargs)

    monkeypatch.setattr(hwnas.compile, "train_network", trains)
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


def test_a_history_knows_its_seed(undisturbed, folder):
    """Even if the config were changed by hand."""
    shutil.copytree(undisturbed / "run", folder / "run")
    for name in ("report.json", "finalists.jsonl", "supernet.safetensors"):
        (folder / "run" / name).unlink()
    config = json.loads((folder / "run/config.json").read_text())
    (folder / "run/config.json").write_text(json.dumps({**config, "seed": 1}))
    with pytest.raises(UserError, match="another data fingerprint"):  # the seed splits the data
        run(folder, resume=True, seed=1)


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


@pytest.mark.parametrize(
    "arguments",
    [
        {"space": "nosuch"}, {"space": "mobilenet(nosuch=1)"}, {"space": "mobilenet(input=(3,8,8))"},
        {"space": "mobilenet(classes=3"},
        {"data": "nosuch"}, {"device": "nosuch"}, {"strategy": "nosuch"}, {"strategy": "evolution(nosuch=1)"},
        {"strategy": "evolution(sample=0)"}, {"predictor": "nosuch"}, {"sampling": "nosuch"}, {"budget": ""}, {"budget": "2"},
        {"budget": "2 parsecs"}, {"evaluations": 0}, {"epochs": 0}, {"supernet_epochs": 0}, {"size": 0}, {"limit": 3},
        {"seed": -1},
        {"device": "cpu-int8"},
        {"device": "cuda"}, {"space": f"{SPACE[:-1]},classes=3)"}, {"strategy": "evolution(population=4, sample=2.5)"},
        {"strategy": "os.path"}, {"predictor": "json"}, {"budget": "1e999ms"}, {"predictor": "lookup_table(x=1)"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_user_can_mend_is_refused_in_one_line_before_anything_is_written(folder, arguments):
    if arguments.get("device") == "cuda" and "CUDAExecutionProvider" in providers():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError) as caught:
        run(folder, **arguments)
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


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
    with pytest.raises(UserError, match="cannot be read"):
        run(folder, "cold", warm_start=folder / "nowhere")
