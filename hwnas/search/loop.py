"""The search loop: ask, evaluate, write down, tell. What is written down is on the disk before the next ask."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hwnas.errors import UserError
from hwnas.search.strategy import Score, Strategy, Trial
from hwnas.space import Genotype
from hwnas.storage import Journal


@dataclass(frozen=True)
class Candidate:
    """An evaluated trial and the predicted metrics of its genotype."""

    trial: Trial
    key: str  # of its network: two genotypes may spell one
    score: Score
    metrics: dict[str, float]

    @property
    def genotype(self) -> Genotype:
        return self.trial.genotype


Evaluate = Callable[[Sequence[Trial], Sequence[Candidate]], Iterable[Candidate]]
"""The trials of a batch as candidates, in order, each as soon as it is known. The first of them may be known already, from a
search that was interrupted: they are given, and given back as they are."""


def one_by_one(evaluate: Callable[[Trial], Candidate]) -> Evaluate:
    """Looks at each trial alone."""
    return lambda trials, known: itertools.chain(known, map(evaluate, trials[len(known) :]))


def run_search(
    strategy: Strategy,
    evaluate: Evaluate,
    history: Journal,
    count: float,
    progress: Callable[[Candidate, int], None] = lambda candidate, done: None,
    batch: int = 1,
) -> list[Candidate]:
    """Evaluates until the history holds the effort of `count` full evaluations.

    batch: trials asked for at once, as far as the strategy has so many. What is found depends on it, not on who works on it.

    A history that already has rows is replayed first: the strategy is asked and told as it was, and must propose the same
    trials. Raises UserError if it does not: the history then belongs to another configuration.
    """
    found: list[Candidate] = []
    spent = 0.0
    while spent < count - 1e-9:
        trials = strategy.ask(max(1, min(batch, int(count - spent))))
        known = [_read(row, history) for row in history.rows[len(found) : len(found) + len(trials)]]
        for candidate, trial in zip(known, trials, strict=False):
            if candidate.trial != trial:
                raise UserError(
                    f"{history.path} was written by another configuration: a row is not what the strategy asks for",
                    got=list(candidate.genotype), remedy="resume with the same arguments, or search into a new folder",
                )  # fmt: skip
        for i, (trial, candidate) in enumerate(zip(trials, evaluate(trials, known), strict=True)):
            if i >= len(known):
                history.append(_row(candidate))
            strategy.tell(trial, candidate.score)
            found.append(candidate)
            spent += trial.fidelity
            if i >= len(known):
                progress(candidate, len(found))
    return found


def _row(candidate: Candidate) -> dict[str, object]:
    effort = {} if candidate.trial.fidelity == 1 else {"fidelity": candidate.trial.fidelity}
    return {
        "genotype": list(candidate.genotype), **effort, "key": candidate.key, "accuracy": candidate.score.accuracy,
        "loss": candidate.score.loss, **({} if candidate.score.complete else {"complete": False}), "metrics": candidate.metrics,
    }  # fmt: skip


def _read(row: dict[str, object], history: Journal) -> Candidate:
    try:
        genotype = tuple(int(v) for v in row["genotype"])  # type: ignore[attr-defined]
        trial = Trial(genotype, float(row.get("fidelity", 1.0)))  # type: ignore[arg-type]
        score = Score(float(row["accuracy"]), float(row["loss"]), row.get("complete", True) is True)  # type: ignore[arg-type]
        return Candidate(trial, str(row["key"]), score, dict(row["metrics"]))  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{history.path} has a row that is not a candidate", got=str(row)[:80]) from None
