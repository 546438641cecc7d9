"""The finalists: the best candidates of the search, measured on the device."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.compile.prediction import costs
from hwnas.compile.run import Run, continued
from hwnas.ir.arch import Arch
from hwnas.latency.measure import Measurement
from hwnas.lower.onnx import to_onnx
from hwnas.report.run import Attempt
from hwnas.search.budget import LATENCY
from hwnas.search.loop import Candidate

_TOGETHER = 8  # measured at once; three such groups at the most
_GROUPS = 3


def measure_finalists(run: Run, candidates: Sequence[Candidate]) -> list[Attempt]:
    """The best candidates, measured; group after group until one keeps the budget. What was measured stays measured.

    Estimated scores come last: such a candidate is tried only if none that was evaluated to the end keeps the budget.
    """
    question = run.question
    best: dict[str, Candidate] = {}  # of each network
    for candidate in sorted(candidates, key=lambda c: (c.score.complete, c.score.rank), reverse=True):
        best.setdefault(candidate.key, candidate)
    ranked = list(best.values())
    journal = continued(run.folder.finalists, {"format": "hwnas finalists 1"})
    attempts = [Attempt.model_validate(row) for row in journal.rows]
    for start in range(0, min(len(ranked), _GROUPS * _TOGETHER), _TOGETHER):
        done = {a.key for a in attempts}
        left = [c for c in ranked[start : start + _TOGETHER] if c.key not in done]
        archs = [question.arch(c.genotype) for c in left]
        models = [to_onnx(arch, question.weights(c.genotype)).SerializeToString() for arch, c in zip(archs, left, strict=True)]
        measured = run.measure(models, "finalists")
        for candidate, arch, found in zip(left, archs, measured, strict=True):
            attempt = Attempt(
                key=candidate.key, genotype=list(candidate.genotype), search_accuracy=candidate.score.accuracy,
                predicted_ms=candidate.metrics.get(LATENCY), measured_ms=question.judged_ms(found),
                exceeds_by=exceeds(run, arch, found),
            )  # fmt: skip
            journal.append(attempt.model_dump())
            attempts.append(attempt)
        if any(a.exceeds_by == 0 for a in attempts):
            break
    return attempts


def exceeds(run: Run, arch: Arch, found: Measurement) -> float:
    """By what share a measured network exceeds the budget."""
    return run.question.budget.violation({**costs(arch), LATENCY: run.question.judged_ms(found)})
