"""The main job by other evaluators, with training choices, in batches and with workers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from command_line import ENVIRONMENT, HERE
from fake_device import at_moment, at_moments
from runs import FILES, Boom, answer, boom, flags, run, small_space

import hwnas.compile.finalists
import hwnas.compile.winner
from hwnas.compile.finalists import measure_finalists
from hwnas.compile.phases import fully_scored
from hwnas.compile.scoring import Scoring, score_of
from hwnas.errors import UserError
from hwnas.evaluation.evaluators import supernet
from hwnas.evaluation.training_choices import training_key, with_training_choices
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import to_torch
from hwnas.report.run import RunFolder
from hwnas.search.loop import Candidate
from hwnas.search.strategy import Score, Trial
from hwnas.supernet.train import train_network

pytestmark = pytest.mark.usefixtures("fake_device")

RATES = "learning_rate=0.001,0.1"
JOINT = {
    "evaluator": "short_training(epochs=1, batch_size=32)", "training": [RATES, "epochs"], "evaluations": 6, "batch": 3,
    "strategy": "evolution(population=3, sample=2)", "limit": 80,
}  # fmt: skip


def rows(path):
    return [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def joint(undisturbed, tmp_path_factory):
    """The folder of a `profile` and of the `run` that answers JOINT. No test may change it."""
    from fake_device import install

    folder = tmp_path_factory.mktemp("joint")
    shutil.copytree(undisturbed / "profile", folder / "profile")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        run(folder, **JOINT)
    return folder


@pytest.mark.parametrize(
    ("evaluator", "first"),
    [
        ("zero_cost(proxies=('synflow','params'), batch_size=8)", None),
        ("cross_validation(folds=2, epochs=1)", "accuracy"),
        ("training(epochs=1)", "accuracy"),
        (f"predictor(known={[((0,) * len(small_space().choices), 0.5)] * 4})", None),
    ],
)
def test_no_supernet_is_trained_where_none_is_needed(folder, monkeypatch, evaluator, first):
    def never(*args, **kwargs):
        raise AssertionError("a supernet was made")

    monkeypatch.setattr("hwnas.compile.Supernet", never)
    report = run(folder, evaluator=evaluator, evaluations=3, epochs=1, limit=80)
    assert report.succeeded
    assert {p.name for p in (folder / "run").iterdir()} == FILES - {"supernet.safetensors"}
    assert "supernet" not in report.seconds
    assert report.config.evaluator == evaluator
    assert report.evaluated == 3
    if first:
        assert all(0 <= row["accuracy"] <= 1 for row in rows(folder / "run"))


def test_scores_are_the_evaluators(joint):
    """Against training by hand: the recipe is the genotype's, and so is the network."""
    from hwnas.data import load_data
    from hwnas.evaluation.training_choices import training_of
    from hwnas.supernet.train import Recipe

    data = load_data("digits", seed=0, limit=80)
    space = with_training_choices(small_space(), {"learning_rate": (0.001, 0.1), "epochs": (0.5, 1.0)})
    for row in rows(joint / "run"):
        genotype = tuple(row["genotype"])
        recipe, augmentation = training_of(space, genotype, Recipe(epochs=1, batch_size=32), data.augmentation)
        network = to_torch(simplify(small_space().decode(genotype[:-2])), seed=0)
        found = train_network(network, data.search, augmentation, recipe, seed=0).validation
        assert (row["accuracy"], row["loss"]) == (found.accuracy, found.loss)
        assert row["key"] == network.arch.key


def test_the_winner_is_trained_with_the_hyper_parameters_that_were_found(joint, undisturbed, folder, monkeypatch):
    seen = []

    def watched(network, data, augmentation, recipe, **arguments):
        seen.append(recipe)
        return train_network(network, data, augmentation, recipe, **arguments)

    monkeypatch.setattr(hwnas.compile.winner, "train_network", watched)
    report = run(folder, **{**JOINT, "epochs": 4})
    assert report.choices == RunFolder(joint / "run").read_report().choices
    assert seen[-1].learning_rate == float(report.choices["train.learning_rate"])
    assert seen[-1].epochs == round(4 * float(report.choices["train.epochs"]))
    best = max(rows(folder / "run"), key=lambda row: (row["accuracy"], -row["loss"]))
    assert report.choices["train.learning_rate"] == ("0.001", "0.1")[best["genotype"][-2]]
    assert report.config.training == {"learning_rate": [0.001, 0.1], "epochs": [0.5, 1.0]}


def test_what_is_found_does_not_depend_on_the_workers(joint, folder):
    run(folder, **JOINT, workers=2)
    assert answer(folder / "run") == answer(joint / "run")


def test_workers_score_in_the_supernet_as_one_process_does(folder, monkeypatch):
    monkeypatch.setattr(supernet.Evaluator, "together", 2)
    arguments = {"evaluations": 5, "batch": 4, "supernet_epochs": 1, "epochs": 1, "strategy": "random"}
    run(folder, "one", **arguments)
    run(folder, "two", **arguments, workers=2)
    assert answer(folder / "one") == answer(folder / "two")


def test_stopped_anywhere_a_joint_search_goes_on_to_the_same_answer(joint, tmp_path, monkeypatch):
    shutil.copytree(joint / "profile", tmp_path / "profile")
    total = 0

    def count():
        nonlocal total
        total += 1

    with monkeypatch.context() as patch:
        at_moments(patch.setattr, count)
        run(tmp_path, "counted", **JOINT)
    rng = random.Random(0)
    for stop in (*sorted(rng.sample(range(3, total), 3)), total):
        with monkeypatch.context() as patch:
            at_moment(patch.setattr, stop, boom)
            with pytest.raises(Boom):
                run(tmp_path, f"stopped{stop}", **JOINT)
        run(tmp_path, f"stopped{stop}", **JOINT, resume=True)
        assert answer(tmp_path / f"stopped{stop}") == answer(joint / "run")


def test_a_run_goes_on_with_the_threads_that_it_began_with(joint, folder, monkeypatch):
    shutil.copytree(joint, folder, dirs_exist_ok=True)
    (folder / "run/report.json").unlink()
    monkeypatch.setattr("hwnas.compile.torch", SimpleNamespace(get_num_threads=lambda: 7))
    run(folder, **JOINT, resume=True)
    assert answer(folder / "run") == answer(joint / "run")
    with pytest.raises(UserError, match="another threads: 1"):
        run(folder, **JOINT, resume=True, threads=2)
    assert run(folder, "shared", evaluations=1, supernet_epochs=1, epochs=1).config.threads == 7
    (folder / "shared/report.json").unlink()
    monkeypatch.setattr("hwnas.compile.torch", SimpleNamespace(get_num_threads=lambda: 3))
    assert run(folder, "shared", evaluations=1, supernet_epochs=1, epochs=1, resume=True).config.threads == 7


def test_other_training_choices_are_another_question(joint, tmp_path):
    shutil.copytree(joint, tmp_path, dirs_exist_ok=True)
    for training in ([], ["epochs"], ["learning_rate=0.001,0.2", "epochs"]):
        with pytest.raises(UserError, match="another training"):
            run(tmp_path, **{**JOINT, "training": training}, resume=True)


def test_killed_with_its_workers_at_work_a_joint_search_goes_on_to_the_same_answer(joint, tmp_path):
    """SIGKILL before a row of history is written; the workers see that nobody wants their results any more."""
    shutil.copytree(joint / "profile", tmp_path / "profile")
    changes = {**JOINT, "training": None, "workers": 2}
    more = [part for text in JOINT["training"] for part in ("--training", text)]
    arguments = [*flags(tmp_path / "run", tmp_path / "profile", **changes), *more]
    command = [sys.executable, HERE / "fake_device.py", "6", "SIGKILL", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=HERE.parent)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = rows(tmp_path / "run")
    assert 0 < len(left) < JOINT["evaluations"]
    run(tmp_path, **JOINT, resume=True, workers=2)
    assert answer(tmp_path / "run") == answer(joint / "run")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"evaluator": "nosuch"}, ["unknown evaluator", "cross_validation"]),
        ({"evaluator": "training(speed=3)"}, ["no argument 'speed'", "epochs"]),
        ({"evaluator": "predictor"}, ["at least 4"]),
        ({"evaluator": "cross_validation(folds=99)"}, ["folds"]),
        ({"evaluator": "training(epochs='many')"}, ["epochs"]),
        ({"training": ["learning_rate"]}, ["training choices need an evaluator that trains", "short_training"]),
        ({"training": ["speed"], "evaluator": "training"}, ["speed", "learning_rate"]),
        ({"training": ["epochs=2"], "evaluator": "training"}, ["epochs", "2"]),
        ({"evaluator": "zero_cost", "inherit": True}, ["supernet", "scratch"]),
        ({"workers": 0}, ["at least 1"]), ({"batch": 0}, ["at least 1"]), ({"threads": 0}, ["at least 1"]),
        ({"workers": 3, "batch": 2, "evaluator": "short_training"}, ["3 workers", "batch of 3"]),
        ({"workers": 2, "batch": 64}, ["64 together", "batch of 65"]),
        ({"strategy": "auto(front='x')"}, ["front", "'x'", "latency_ms"]),
        ({"strategy": "auto(front='latency_ms')", "budget": "1Mparams"}, ["front", "macs"]),
        ({"strategy": "nsga2(objectives=('x',))"}, ["objective", "latency_ms"]),
        ({"strategy": "reinforce(target_ms=1.0)", "budget": "1Mparams"}, ["target_ms"]),
        ({"warm_start": "nosuch"}, ["warm start", "nosuch", "a finished run"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_any_work(folder, monkeypatch, arguments, parts):
    monkeypatch.setattr("hwnas.compile.answer", lambda run: pytest.fail("it started"))
    before = sorted(os.listdir(folder / "profile"))
    with pytest.raises(UserError) as caught:
        run(folder, **arguments)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert not (folder / "run").exists()
    assert sorted(os.listdir(folder / "profile")) == before


class Watched:
    """What scoring asks of a prediction: spaces and networks; and an evaluator whose numbers depend on the group."""

    def __init__(self, together):
        self.space = with_training_choices(small_space(), {"learning_rate": (0.001, 0.1)})
        self.question = self.evaluator = self
        self.together, self.groups = together, []

    def arch(self, genotype):
        return simplify(self.space.decode(genotype))

    def metrics(self, genotype):
        return {"macs": float(sum(genotype))}

    def evaluate_groups(self, groups):
        for group in groups:
            self.groups.append(len(group))
            yield [{"accuracy": hash((trial, *group)) % 997 / 997} for trial in group]


@pytest.mark.parametrize("together", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_same_after_an_interruption(together, seed):
    """Batches with repeated networks, replayed up to any candidate: the scores come out as if nothing had happened."""
    rng = random.Random(seed)
    watched = Watched(together)
    pool = [watched.space.sample(rng) for _ in range(9)]
    batches = [[Trial(rng.choice(pool), rng.choice((0.5, 1.0))) for _ in range(5)] for _ in range(4)]
    scoring = Scoring(watched, watched.evaluate_groups)
    whole = [candidate for batch in batches for candidate in scoring(batch, [])]
    scores = {}
    for candidate in whole:  # one score for each network, recipe and fidelity
        genotype, fidelity = candidate.trial.genotype, candidate.trial.fidelity
        recipe = candidate.key, training_key(watched.space, genotype), fidelity
        assert scores.setdefault(recipe, candidate.score) == candidate.score
    assert sum(watched.groups) == len(scores)
    assert max(watched.groups) <= together
    for stop in range(len(whole) + 1):
        again = Watched(together)
        resumed = Scoring(again, again.evaluate_groups)
        found: list[Candidate] = []
        for batch in batches:
            known = whole[len(found) : min(stop, len(found) + len(batch))]
            found += resumed(batch, known)
        assert found == whole
        if stop == len(whole):
            assert again.groups == []


def test_estimates_are_no_answers():
    assert score_of({"accuracy": 0.9, "loss": 0.1}).complete
    assert score_of({"accuracy": 0.9, "complete": 1.0}).complete
    estimate = score_of({"accuracy": 0.9, "loss": 0.1, "complete": 0.0})
    assert not estimate.complete

    def candidate(score, fidelity=1.0):
        return Candidate(Trial((0,), fidelity), "", score, {})

    whole, cheap = candidate(Score(0.5, 1.0)), candidate(Score(0.95, 0.0), 0.5)
    assert fully_scored([cheap, candidate(estimate), whole]) == [whole]


def test_estimates_are_the_last_finalists(monkeypatch, tmp_path):
    space = small_space()
    genotypes = [space.sample(random.Random(seed)) for seed in range(4)]
    scores = [Score(0.9, 0.1, complete=False), Score(0.4, 0.1), Score(0.6, 0.1), Score(0.95, 0.1, complete=False)]
    candidates = [Candidate(Trial(g), f"k{i}", s, {}) for i, (g, s) in enumerate(zip(genotypes, scores, strict=True))]
    monkeypatch.setattr(hwnas.compile.finalists, "exceeds", lambda run, arch, found: 0.1)
    monkeypatch.setattr(hwnas.compile.finalists, "to_onnx", lambda arch, weights: SimpleNamespace(SerializeToString=bytes))
    question = SimpleNamespace(arch=lambda g: None, weights=lambda g: None, judged_ms=lambda found: 1.0)
    run = SimpleNamespace(
        question=question, folder=SimpleNamespace(finalists=tmp_path / "finalists.jsonl"), measure=lambda models, what: models
    )
    found = measure_finalists(run, candidates)
    assert [a.key for a in found] == ["k2", "k1", "k3", "k0"]


def test_what_diverged_is_worse_than_anything():
    fine, bad = score_of({"accuracy": 0.1, "loss": 1e9}), score_of({"accuracy": 0.1, "loss": float("nan")})
    assert bad.rank < fine.rank
    assert score_of({"naswot": float("nan")}).rank < Score(-1e300, 0.0).rank
    assert all(json.loads(json.dumps(vars(s), allow_nan=False)) for s in (fine, bad))
