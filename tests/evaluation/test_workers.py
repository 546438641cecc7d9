"""Worker processes: the same results for any number of them, in the order of the jobs, also when some die."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.errors import UserError
from hwnas.evaluation.evaluator import make_evaluator
from hwnas.evaluation.worker import build
from hwnas.evaluation.workers import Task, Workers
from hwnas.search.strategy import Trial
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import Recipe, Sampler, train_supernet

SPACE = "chain(layers=2,widths=(2,4),activations=('relu',))"
TASK = Task(
    SPACE, "digits", "short_training(epochs=1,batch_size=32)", seed=1, limit=60, training={"learning_rate": (0.03, 0.3)}
)
DYING = '''
import os, pathlib, time
from hwnas.evaluation import evaluator

class Evaluator(evaluator.Evaluator):
    """Dies in the first `deaths` attempts at the second width, or if that is below 0 takes very long."""

    def __init__(self, setting, folder="", deaths=0):
        super().__init__(setting)
        self.folder, self.deaths = pathlib.Path(folder), deaths

    def evaluate(self, genotype, fidelity=1.0):
        print("noise on stdout")
        if self.deaths < 0:
            (self.folder / str(os.getpid())).touch()
            time.sleep(3600)
        if genotype[1] == 1 and len(list(self.folder.iterdir())) < self.deaths:
            (self.folder / str(os.getpid())).touch()
            os._exit(9)
        return {"worth": float(genotype[1])}
'''


def genotypes(count: int) -> list[tuple[int, ...]]:
    space = build(TASK).setting.space
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def test_any_number_of_workers_gives_the_same_results_in_order():
    jobs = genotypes(5)
    here = build(TASK)
    expected = [here.evaluate(g) for g in jobs]
    with Workers(TASK, 2) as workers:
        assert list(workers.evaluate_groups([[Trial(g) for g in jobs[:2]], [Trial(g) for g in jobs[2:]]])) == [
            expected[:2],
            expected[2:],
        ]
        assert list(workers.evaluate_groups([[Trial(jobs[0], 0.5)]])) == [[here.evaluate(jobs[0], 0.5)]]
        assert list(workers.evaluate_groups([])) == []


def test_workers_take_their_weights_from_the_checkpoint_of_a_supernet(tmp_path):
    task = Task(SPACE, "digits", "supernet", seed=1, limit=60, supernet=str(tmp_path / "supernet"))
    setting = build(replace(TASK, training={})).setting
    supernet = Supernet(setting.space, 1)
    data, sampler = setting.data, Sampler("uniform", (0,) * 6, (0,) * 6)
    recipe = Recipe(epochs=1, batch_size=32)
    train_supernet(supernet, data, setting.augmentation, recipe, sampler, seed=1, checkpoint=Path(task.supernet))
    jobs = [Trial((0, 1, 0, 0, 1, 0)), Trial((0, 0, 0, 0, 0, 0), 0.5)]
    expected = make_evaluator("supernet", replace(setting, supernet=supernet)).evaluate_many(jobs)
    assert expected != make_evaluator("supernet", replace(setting, supernet=Supernet(setting.space, 1))).evaluate_many(jobs)
    with Workers(task, 2) as workers:
        assert list(workers.evaluate_groups([[job] for job in jobs])) == [[row] for row in expected]


@pytest.fixture
def dying(tmp_path, monkeypatch):
    package, deaths_seen = tmp_path / "modules" / "dying_plugin", tmp_path / "deaths"
    package.mkdir(parents=True)
    deaths_seen.mkdir()
    (package / "__init__.py").write_text("")
    (package / "evaluator.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path / "modules")  # workers import what this process imports

    def task(deaths: int) -> Task:
        return Task(SPACE, "digits", f"dying_plugin.evaluator(folder={str(deaths_seen)!r},deaths={deaths})", limit=60)

    return task


def test_the_job_of_a_worker_that_dies_is_done_by_another_but_not_for_ever(dying, monkeypatch):
    monkeypatch.setattr("hwnas.evaluation.workers.TRIES", 2)
    jobs = [(0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)]
    with Workers(dying(3), 1) as workers:
        with pytest.raises(UserError, match="died 2 times") as caught:
            list(workers.evaluate_groups([[Trial(jobs[1])]]))
        assert "\n" not in str(caught.value)
        found = [row for rows in workers.evaluate_groups([[Trial(g)] for g in jobs]) for row in rows]
        assert found == [{"worth": 0.0}, {"worth": 1.0}, {"worth": 0.0}]  # one more dies on the way


def test_nobody_waits_for_work_that_nobody_wants(dying, tmp_path):
    """After an error the workers end at once, amid their work: else this would take an hour."""

    def failing():
        with Workers(dying(-1), 1) as workers:
            workers.evaluate_groups([[Trial((0,) * 6)], [Trial((0,) * 6)]])
            while not list((tmp_path / "deaths").iterdir()):
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    (worker,) = (tmp_path / "deaths").iterdir()
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker.name), 0)


def test_what_a_worker_refuses_is_an_error_here():
    with Workers(TASK, 1) as workers, pytest.raises(UserError, match="takes 0 to"):
        list(workers.evaluate_groups([[Trial((0, 9, 0, 0, 0, 0, 0))]]))
    with pytest.raises(UserError, match="at least one worker"):
        Workers(TASK, 0)
