"""A search that is killed outright goes on to the history of the undisturbed one: one strategy of each family."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from hwnas.search.admission import Admission
from hwnas.search.loop import Candidate, one_by_one, run_search
from hwnas.search.strategy import Score, make_strategy
from hwnas.spaces import make_space
from hwnas.storage import Journal

SPACE = make_space("nasbench201(input=(1,4,4), classes=3, channels=2, cells=1)")
HEADER = {"format": "test"}
FAMILIES = [
    "local(patience=4)", "evolution(population=5, sample=2)", "nsga2(population=6)", "hybrid(batch=4, population=5, sample=2)",
    "qlearning(explore=10)", "bayesian(initial=4)", "predictor(initial=4, batch=3, members=5)",
    "halving", "auto(judged=12)",
]  # fmt: skip
COUNT = 24


def evaluate(trial, seconds=0.0):
    time.sleep(seconds)
    worth = random.Random(str(trial)).random()
    return Candidate(trial, str(trial.genotype), Score(worth, 1 - worth), {})


def search(text, journal, seconds=0.0):
    strategy = make_strategy(text, Admission(SPACE, lambda g: 0.0, (0,) * 6), 5)
    return run_search(strategy, one_by_one(lambda trial: evaluate(trial, seconds)), journal, COUNT, batch=3)


@pytest.mark.parametrize("text", FAMILIES)
def test_killed_and_resumed_it_is_the_undisturbed_search(tmp_path, text):
    search(text, Journal.create(tmp_path / "whole", HEADER))
    path = tmp_path / "history"
    Journal.create(path, HEADER)
    rng = random.Random(text)
    for _ in range(2):
        rows = path.read_bytes().count(b"\n")
        child = os.fork()
        if child == 0:
            try:
                search(text, Journal.resume(path), 0.02)
            finally:
                os._exit(0)
        wanted = rows + rng.randrange(1, 6)
        give_up = time.monotonic() + 60
        while path.read_bytes().count(b"\n") < wanted and time.monotonic() < give_up:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert path.read_bytes() != (tmp_path / "whole").read_bytes()  # it was on its way
    search(text, Journal.resume(path))
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
