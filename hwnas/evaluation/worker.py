"""The process of a worker: a task as its argument, jobs as lines on stdin, results as lines on stdout."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import torch

from hwnas.data import load_data
from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Evaluator, Setting, make_evaluator
from hwnas.evaluation.training_choices import with_training_choices
from hwnas.evaluation.workers import Task
from hwnas.search.strategy import Trial
from hwnas.spaces import make_space
from hwnas.supernet.checkpoint import load_weights
from hwnas.supernet.supernet import Supernet


def build(task: Task) -> Evaluator:
    for name in task.plugins:
        importlib.import_module(name)
    dataset = load_data(task.data, seed=task.seed, size=task.size, limit=task.limit)
    space = make_space(task.space, input=dataset.input, classes=len(dataset.classes))
    space = with_training_choices(space, task.training)
    supernet = None
    if task.supernet:
        supernet = Supernet(space, task.seed)
        load_weights(Path(task.supernet), supernet)
    setting = Setting(space, dataset.search, dataset.augmentation, task.seed, supernet, task.front)
    return make_evaluator(task.evaluator, setting)


def main() -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the search, which ends its workers
    jobs: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(jobs,), daemon=True).start()
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    evaluator: Evaluator | None = None
    while True:
        job = json.loads(jobs.get())
        try:
            evaluator = evaluator or build(task)
            trials = [Trial(evaluator.setting.space.check(t["genotype"]), t["fidelity"]) for t in job]
            answer: dict[str, object] = {"metrics": evaluator.evaluate_many(trials)}
        except UserError as error:
            answer = {"error": str(error)}
        results.write(json.dumps(answer) + "\n")
        results.flush()


def _read(jobs: SimpleQueue[str]) -> None:
    """Ends the process with its stdin, also amid a job: when the search is gone, however it went, nobody wants the result."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
