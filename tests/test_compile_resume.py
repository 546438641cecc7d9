"""Interruptions: a run that is stopped anywhere goes on to the same answer, and to no other question's."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from fake_device import at_moment, at_moments, slowed
from runs import FILES, SPACE, Boom, answer, boom, run

import hwnas.compile.phases
import hwnas.compile.prediction
import hwnas.compile.run
import hwnas.compile.winner
from hwnas.errors import UserError
from hwnas.report.run import RunFolder

pytestmark = pytest.mark.usefixtures("fake_device")


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
        with monkeypatch.context() as patch:
            at_moment(patch.setattr, stop, boom)
            with pytest.raises(Boom):
                run(folder, name)
        left = {p.name for p in (folder / name).iterdir()} if (folder / name).exists() else set()
        assert left < FILES
        phases.add(frozenset(left))
        run(folder, name, resume=True)
        assert answer(folder / name) == answer(undisturbed / "run")
        shutil.rmtree(folder / name)
    assert len(phases) >= 6


PHASES = {
    "profile_space": hwnas.compile.prediction, "make_predictor": hwnas.compile.prediction,
    "train_supernet": hwnas.compile.phases, "run_search": hwnas.compile.phases, "measure": hwnas.compile.run,
    "train_network": hwnas.compile.winner, "verify": hwnas.compile.winner,
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_an_error_in_a_phase_leaves_what_resume_continues(undisturbed, folder, monkeypatch, phase):
    with monkeypatch.context() as patch:

        def fails(*args, **kwargs):
            raise Boom

        patch.setattr(PHASES[phase], phase, fails)
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
        patch.setattr(hwnas.compile.phases, "run_search", lambda *args: (_ for _ in ()).throw(Boom()))
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
    "evaluator": "zero_cost",
    "batch": 3,
    "threads": 2,
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


def test_a_miss_that_resume_meets_again_is_the_same_miss(folder, monkeypatch):
    monkeypatch.setattr(hwnas.compile.run, "measure", slowed(lambda arch, n: 1.5))
    with monkeypatch.context() as patch:
        patch.setattr(hwnas.compile.winner, "train_network", lambda *args, **kwargs: (_ for _ in ()).throw(Boom()))
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


def test_a_history_knows_its_seed(undisturbed, folder):
    """Even if the config were changed by hand."""
    shutil.copytree(undisturbed / "run", folder / "run")
    for name in ("report.json", "finalists.jsonl", "supernet.safetensors"):
        (folder / "run" / name).unlink()
    config = json.loads((folder / "run/config.json").read_text())
    (folder / "run/config.json").write_text(json.dumps({**config, "seed": 1}))
    with pytest.raises(UserError, match="another data fingerprint"):  # the seed splits the data
        run(folder, resume=True, seed=1)
