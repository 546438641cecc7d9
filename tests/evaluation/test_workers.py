"""Worker processes: the same results for any number of them, in the order of the jobs, also when some die."""

from __future__ import annotations

import os
import random

import pytest

from hwnas.errors import UserError
from hwnas.evaluation.worker import build
from hwnas.evaluation.workers import Task, Workers

SPACE = "chain(layers=2,widths=(2,4),activations=('relu',))"
TASK = Task(SPACE, "digits", "short_training(epochs=1,batch_size=32)", seed=1, limit=60, training=("learning_rate",))
DYING = '''
import os, pathlib
from hwnas.evaluation import evaluator

class Evaluator(evaluator.Evaluator):
    """Dies in the first `deaths` attempts at the second width."""

    def __init__(self, setting, folder="", deaths=0):
        super().__init__(setting)
        self.folder, self.deaths = pathlib.Path(folder), deaths

    def evaluate(self, genotype, fidelity=1.0):
        print("noise on stdout")
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
        assert workers.evaluate(jobs) == expected
        assert workers.evaluate(jobs[:2], [1.0, 1.0]) == expected[:2]


@pytest.fixture
def dying(tmp_path, monkeypatch):
    package, deaths_seen = tmp_path / "modules" / "dying_plugin", tmp_path / "deaths"
    package.mkdir(parents=True)
    deaths_seen.mkdir()
    (package / "__init__.py").write_text("")
    (package / "evaluator.py").write_text(DYING)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])])
    )

    def task(deaths: int) -> Task:
        return Task(SPACE, "digits", f"dying_plugin.evaluator(folder={str(deaths_seen)!r},deaths={deaths})", limit=60)

    return task


def test_the_job_of_a_worker_that_dies_is_done_by_another_but_not_for_ever(dying, monkeypatch):
    monkeypatch.setattr("hwnas.evaluation.workers.TRIES", 2)
    jobs = [(0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)]
    with Workers(dying(3), 1) as workers:
        with pytest.raises(UserError, match="died 2 times") as caught:
            workers.evaluate(jobs[1:2])
        assert "\n" not in str(caught.value)
        assert workers.evaluate(jobs) == [{"worth": 0.0}, {"worth": 1.0}, {"worth": 0.0}]  # one more dies on the way


def test_what_a_worker_refuses_is_an_error_here():
    with Workers(TASK, 1) as workers, pytest.raises(UserError, match="takes 0 to"):
        workers.evaluate([(0, 9, 0, 0, 0, 0, 0)])
    with pytest.raises(UserError, match="at least one worker"):
        Workers(TASK, 0)
