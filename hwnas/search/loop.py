"""The search loop: ask, evaluate, write down, tell. What is written down is on the disk before the next ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwnas.errors import UserError
from hwnas.search.strategy import Score, Strategy
from hwnas.space import Genotype
from hwnas.storage import Journal


@dataclass(frozen=True)
class Candidate:
    """An evaluated genotype and its predicted metrics."""

    genotype: Genotype
    key: str  # of its network: two genotypes may spell one
    score: Score
    metrics: dict[str, float]


def run_search(
    strategy: Strategy,
    evaluate: Callable[[Genotype], Candidate],
    history: Journal,
    count: int,
    progress: Callable[[Candidate, int], None] = lambda candidate, done: None,
) -> list[Candidate]:
    """Evaluates until the history holds `count` candidates.

    A history that already has rows is replayed first: the strategy is asked and told as it was, and must propose the same
    genotypes. Raises UserError if it does not: the history then belongs to another configuration.
    """
    found: list[Candidate] = []
    for row in history.rows[:count]:
        candidate = _read(row, history)
        proposed = strategy.ask()
        if proposed != candidate.genotype:
            raise UserError(
                f"{history.path} was written by another configuration: row {len(found) + 1} is not what the strategy asks for",
                got=list(candidate.genotype), remedy="resume with the same arguments, or search into a new folder",
            )  # fmt: skip
        strategy.tell(proposed, candidate.score)
        found.append(candidate)
    while len(found) < count:
        genotype = strategy.ask()
        candidate = evaluate(genotype)
        history.append(
            {
                "genotype": list(genotype), "key": candidate.key, "accuracy": candidate.score.accuracy,
                "loss": candidate.score.loss, "metrics": candidate.metrics,
            }
        )  # fmt: skip
        strategy.tell(genotype, candidate.score)
        found.append(candidate)
        progress(candidate, len(found))
    return found


def _read(row: dict[str, object], history: Journal) -> Candidate:
    try:
        genotype = tuple(int(v) for v in row["genotype"])  # type: ignore[attr-defined]
        score = Score(float(row["accuracy"]), float(row["loss"]))  # type: ignore[arg-type]
        return Candidate(genotype, str(row["key"]), score, dict(row["metrics"]))  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{history.path} has a row that is not a candidate", got=str(row)[:80]) from None
