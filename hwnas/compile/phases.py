"""The phases of a run, from profile to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from safetensors.numpy import save as save_safetensors

from hwnas.compile.finalists import measure_finalists
from hwnas.compile.prediction import Prediction
from hwnas.compile.run import Run, continued
from hwnas.compile.scoring import Scoring, evaluating
from hwnas.compile.winner import Winner, evaluate_model, train_finalist
from hwnas.ir.text import print_arch
from hwnas.latency.target import fingerprint
from hwnas.lower.cost import cost
from hwnas.report.run import Attempt, Quality, Report, Tradeoff, versions
from hwnas.search.admission import smallest
from hwnas.search.loop import Candidate, run_search
from hwnas.search.pareto import pareto_front
from hwnas.search.strategy import Strategy, make_strategy
from hwnas.storage import write_file
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation
from hwnas.supernet.train import Recipe, Sampler, train_supernet


def answer(run: Run) -> Report:
    config = run.question.config
    prediction = Prediction(run)
    strategy = make_strategy(config.strategy, prediction.admission(), config.seed)
    run.folder.start(config, resume=True)
    prediction.keep_profile()
    if run.question.supernet:
        with run.phase("supernet"):
            _train_supernet(run, run.question.supernet)
    with run.phase("search"):
        candidates = _search(run, prediction, strategy)
    with run.phase("finalists"):
        finalists = measure_finalists(run, at_highest_fidelity(candidates))
    winner, finalists = _train_best(run, prediction, finalists)
    return _report(run, prediction, winner, finalists, candidates)


def at_highest_fidelity(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those whose score can be compared."""
    highest = max(c.trial.fidelity for c in candidates)
    return [c for c in candidates if c.trial.fidelity == highest]


def fully_scored(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Of those the ones whose score is no estimate: evaluated to the end."""
    return [c for c in at_highest_fidelity(candidates) if c.score.complete]


def _train_supernet(run: Run, supernet: Supernet) -> None:
    config, dataset, space = run.question.config, run.question.dataset, run.question.space
    size = {sign: smallest(space, lambda g, s=sign: s * cost(space.decode(g)).macs) for sign in (1, -1)}  # type: ignore[misc]
    sampler = Sampler(config.sampling, smallest=size[1], largest=size[-1])  # type: ignore[arg-type]
    train_supernet(
        supernet, dataset.search, dataset.augmentation, Recipe(epochs=config.supernet_epochs), sampler, seed=config.seed,
        checkpoint=run.folder.supernet, progress=lambda d, t, loss: run.watch("supernet", d, t, f"loss {loss:.3f}"),
    )  # fmt: skip


def _search(run: Run, prediction: Prediction, strategy: Strategy) -> list[Candidate]:
    config = run.question.config
    history = continued(run.folder.history, {"format": "hwnas history 1", "seed": config.seed})
    with evaluating(run) as evaluate_groups:
        return run_search(
            strategy, Scoring(prediction, evaluate_groups), history, config.evaluations,
            lambda c, done: run.watch("search", done, config.evaluations, f"score {c.score.accuracy:.4g}"), config.batch,
        )  # fmt: skip


def _train_best(run: Run, prediction: Prediction, finalists: list[Attempt]) -> tuple[Winner, list[Attempt]]:
    """The best of the finalists within the budget, trained; and the finalists with what was measured anew.

    One on the edge of the budget can fall over it when measured again, trained; then the next one is taken.
    """
    within = [f for f in finalists if f.exceeds_by == 0] or sorted(finalists, key=lambda f: f.exceeds_by)[:1]
    best: Winner | None = None
    for attempt in within:
        trained = train_finalist(run, attempt, prediction.predicted(run.question.arch(tuple(attempt.genotype))))
        finalists = [trained.attempt if f.key == attempt.key else f for f in finalists]
        if best is None or trained.attempt.exceeds_by < best.attempt.exceeds_by:
            best = trained
        if best.attempt.exceeds_by == 0:
            break
    assert best is not None
    return best, finalists


def _report(
    run: Run, prediction: Prediction, winner: Winner, finalists: list[Attempt], candidates: Sequence[Candidate]
) -> Report:
    """The answer: the test split is seen here, once, by the network that was chosen."""
    question, arch = run.question, winner.network.arch
    with run.phase("testing"):
        split = question.dataset.test.split
        float32 = evaluate(winner.network, split)
        quantized = winner.model != winner.exported
        test = evaluate_model(winner.model, split) if quantized else float32
    metric = next(iter(question.budget.limits))
    front = pareto_front(fully_scored(candidates), lambda c: c.metrics[metric], lambda c: c.score.accuracy)
    report = Report(
        succeeded=winner.attempt.exceeds_by == 0, config=question.config, key=arch.key,
        choices=question.space.describe(tuple(winner.attempt.genotype)), **asdict(cost(arch)),
        predicted=prediction.predicted(arch), measured=winner.measurement, fingerprint=fingerprint(question.device),
        test=_quality(test),
        float32_test=_quality(float32) if quantized else None,
        validation=_quality(winner.trained.validation), trained_epochs=winner.trained.epochs,
        onnx_max_error=winner.difference, input=question.input(), finalists=finalists,
        pareto=[
            Tradeoff(key=c.key, genotype=list(c.genotype), search_accuracy=c.score.accuracy, metrics=c.metrics) for c in front
        ],
        evaluated=len(candidates), seconds=run.seconds(), versions=versions(),
    )  # fmt: skip
    write_file(run.folder.arch, print_arch(arch))
    write_file(run.folder.weights, save_safetensors(winner.network.weights()))
    write_file(run.folder.model, winner.model)
    if quantized:
        write_file(run.folder.float32_model, winner.exported)
    write_file(run.folder.report, report.model_dump_json(indent=2) + "\n")
    return report


def _quality(found: Evaluation) -> Quality:
    return Quality(accuracy=found.accuracy, macro_f1=found.macro_f1, loss=found.loss)
