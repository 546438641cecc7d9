"""Scoring: trials in, candidates out, whoever evaluates them.

A network is evaluated once for each recipe: two genotypes of one network may take its weights from different slots, and the
first that is scored counts. What is left of a batch is cut into the evaluator's groups, for this process or for workers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from hwnas.compile.prediction import Prediction
from hwnas.compile.run import Run
from hwnas.evaluation.evaluator import Evaluator, Metrics
from hwnas.evaluation.training_choices import training_key
from hwnas.evaluation.workers import Task, Workers
from hwnas.search.loop import Candidate
from hwnas.search.strategy import Score, Trial

Groups = Sequence[Sequence[Trial]]
EvaluateGroups = Callable[[Groups], Iterable[list[Metrics]]]
_Key = tuple[str, str, float]  # of a network, its training choices, and the fidelity


class Scoring:
    """Is called with the trials of a batch, as `run_search` calls it."""

    def __init__(self, prediction: Prediction, evaluate_groups: EvaluateGroups) -> None:
        self.prediction, self.evaluate_groups = prediction, evaluate_groups
        self._scores: dict[_Key, Score] = {}  # of the batches before

    def __call__(self, trials: Sequence[Trial], known: Sequence[Candidate]) -> Iterator[Candidate]:
        """An interrupted search forms the groups that it would have formed: those that are not `known` to the last are anew."""
        keys = [self._key(trial) for trial in trials]
        new: dict[_Key, Trial] = {}
        for key, trial in zip(keys, trials, strict=True):
            if key not in self._scores:
                new.setdefault(key, trial)
        found: dict[_Key, Score] = {}
        for key, candidate in zip(keys, known, strict=False):
            found.setdefault(key, candidate.score)
        together, order = self.prediction.question.evaluator.together, list(new)
        groups = [order[i : i + together] for i in range(0, len(order), together)]
        left = [group for group in groups if any(key not in found for key in group)]
        rows = iter(self.evaluate_groups([[new[key] for key in group] for group in left]))
        work = iter(left)
        for i, (key, trial) in enumerate(zip(keys, trials, strict=True)):
            if key not in self._scores:
                while key not in found:
                    for each, metrics in zip(next(work), next(rows), strict=True):
                        found.setdefault(each, score_of(metrics))
                self._scores[key] = found[key]
            yield known[i] if i < len(known) else self._candidate(trial, key)

    def _key(self, trial: Trial) -> _Key:
        question = self.prediction.question
        return question.arch(trial.genotype).key, training_key(question.space, trial.genotype), trial.fidelity

    def _candidate(self, trial: Trial, key: _Key) -> Candidate:
        return Candidate(trial, key[0], self._scores[key], self.prediction.metrics(trial.genotype))


def score_of(metrics: Metrics) -> Score:
    """What the evaluator is about counts as accuracy; where it knows no loss, equals stay equals. Training that diverged is
    worse than any other."""
    value, loss, complete = next(iter(metrics.values())), metrics.get("loss", 0.0), metrics.get("complete", 1.0) == 1
    worst = sys.float_info.max
    return Score(value if math.isfinite(value) else -worst, loss if math.isfinite(loss) else worst, complete)


@contextmanager
def evaluating(run: Run) -> Iterator[EvaluateGroups]:
    """Evaluates groups here, or in workers if there are to be more than one."""
    question, config = run.question, run.question.config
    if run.workers == 1:
        yield lambda groups: _here(question.evaluator, groups, config.threads)
        return
    task = Task(
        config.space, config.data, config.evaluator, config.seed, config.size, config.limit, config.training, config.threads,
        supernet=str(run.folder.supernet) if question.supernet else None, front=question.evaluator.setting.front,
    )  # fmt: skip
    with Workers(task, run.workers) as workers:
        yield workers.evaluate_groups


def _here(evaluator: Evaluator, groups: Groups, threads: int) -> Iterator[list[Metrics]]:
    """With as many threads as a worker has: sums round otherwise with another number."""
    for group in groups:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = evaluator.evaluate_many(group)
        finally:
            torch.set_num_threads(before)
        yield found
