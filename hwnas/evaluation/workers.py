"""Evaluation in worker processes of one machine. Results do not depend on their number, nor on which of them did what.

A worker is a Python process of its own that reads jobs and writes results as lines of JSON: nothing is pickled. Each runs with
the same number of threads, loads the same data and evaluates a group of trials as if it were the only one. Results come back in
the order of the jobs. A job whose worker dies is given to a new one, twice at most.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import IO, Any

from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Metrics
from hwnas.search.strategy import Trial

TRIES = 3


@dataclass(frozen=True)
class Task:
    """What a worker needs to evaluate genotypes: texts and numbers, as the command line has them.

    `space` without input and classes, which are the data's. `training`: training choices to add to it, with their values.
    `threads` of each worker: part of the task, since a sum may round otherwise with another number. `supernet`: the checkpoint
    file of a trained one, for evaluators that need it. `front`: as in Setting.
    """

    space: str
    data: str
    evaluator: str
    seed: int = 0
    size: int | None = None
    limit: int | None = None
    training: Mapping[str, Sequence[float]] = field(default_factory=dict)
    threads: int = 1
    supernet: str | None = None
    front: bool = False
    plugins: tuple[str, ...] = ()


class Workers:
    """A pool of `count` workers, to be used in a `with` statement. They start when there is work."""

    def __init__(self, task: Task, count: int) -> None:
        if count < 1:
            raise UserError("at least one worker is needed", got=count)
        self.task, self.count = task, count
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(count)
        self._started: list[_Worker] = []
        self._lock = Lock()
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """At once, whatever they are at: after an error or an interrupt nobody waits for a training to end."""
        with self._lock:
            self._closed = True
            for worker in self._started:
                worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._started:
            worker.stop()

    def evaluate_groups(self, groups: Sequence[Sequence[Trial]]) -> Iterator[list[Metrics]]:
        """The metrics of each group's trials, in order, as soon as they are there.

        UserError for what a worker refuses, or if one dies over and over.
        """
        jobs = [[{"genotype": list(t.genotype), "fidelity": t.fidelity} for t in group] for group in groups]
        return self._threads.map(self._run, jobs)

    def _run(self, job: list[dict[str, Any]]) -> list[Metrics]:
        worker = self._idle.get()
        try:
            for _ in range(TRIES):
                worker = worker or self._start()
                answer = worker.ask(job)
                if answer is not None:
                    break
                worker.stop()
                worker = None
            else:
                raise UserError(
                    f"a worker died {TRIES} times over the same work", got=str([trial["genotype"] for trial in job]),
                    remedy="its messages are above; fewer workers need less memory",
                )  # fmt: skip
        finally:
            self._idle.put(worker)
        if "error" in answer:
            raise UserError(answer["error"])
        return [{name: float(value) for name, value in row.items()} for row in answer["metrics"]]

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise CancelledError
            self._started.append(_Worker(self.task))
            return self._started[-1]


class _Worker:
    """It imports what this process imports: a plug-in may lie beside the program."""

    def __init__(self, task: Task) -> None:
        command = [sys.executable, "-m", "hwnas.evaluation.worker", json.dumps(asdict(task))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )  # fmt: skip

    def ask(self, job: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The answer, or None if the process is gone."""
        stdin, stdout = _pipe(self.process.stdin), _pipe(self.process.stdout)
        try:
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:
            return None
        if not line.endswith("\n"):
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                _pipe(pipe).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
