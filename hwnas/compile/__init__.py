"""compile_network: a search space, data, a device and a budget in; a trained, verified, measured ONNX model out.

The wiring of the rooms, and nothing else: here the question is checked, in `phases` it is answered, phase by phase. Every phase
leaves a file in the run folder, so a killed run resumes where it was.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from hwnas.compile.phases import answer
from hwnas.compile.prediction import dry_admission
from hwnas.compile.run import Question, Run
from hwnas.data import Dataset, load_data
from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Evaluator, Setting, find_evaluator, make_evaluator
from hwnas.evaluation.training_choices import parse_training, with_training_choices
from hwnas.latency.device import FOLDER, load_device
from hwnas.latency.predictor import DEFAULT as DEFAULT_PREDICTOR
from hwnas.latency.predictor import model_class
from hwnas.latency.target import fingerprint
from hwnas.plugins import load as load_plugin
from hwnas.plugins import parse_call
from hwnas.report.progress import Watch, silent
from hwnas.report.run import Config, Report, RunFolder
from hwnas.search.budget import Budget
from hwnas.search.strategy import make_strategy
from hwnas.search.warm import prior_genotypes
from hwnas.space import Space
from hwnas.spaces import make_space
from hwnas.supernet.supernet import Supernet

DEFAULT_BATCH = 8
_PRIOR = 64  # genotypes of a finished run that a warm start remembers


def compile_network(
    space: str,
    data: str,
    device: str = "cpu",
    budget: str | Sequence[str] = "",
    out: str | Path = "run",
    *,
    strategy: str = "auto",
    predictor: str = DEFAULT_PREDICTOR,
    evaluator: str = "supernet",
    training: Sequence[str] = (),
    judge: str = "quiet",
    evaluations: int = 300,
    batch: int = DEFAULT_BATCH,
    workers: int = 1,
    threads: int | None = None,
    supernet_epochs: int = 40,
    sampling: str = "uniform",
    epochs: int = 60,
    inherit: bool = False,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    profile: str | Path | None = None,
    warm_start: str | Path | None = None,
    resume: bool = False,
    watch: Watch = silent,
) -> Report:
    """Searches `space` for the most accurate network within `budget`, trains it and writes it to `out` as `model.onnx`.

    space: `name` or `name(argument=value)`; input size and classes are the data's. budget: like `2ms` or `2ms,1Mparams`.

    evaluator: what a candidate is worth, `name` or `name(argument=value)`; a supernet is trained where it needs one. training:
    hyper-parameters to search with the architecture, for an evaluator that trains: `learning_rate`, or `batch_size=32,64`, or
    `all`; the winner is trained with those found. evaluations: candidates evaluated, `batch` at a time where the strategy can
    propose as many without knowing each other's worth. workers: processes that evaluate, this one if it is one. threads: of
    each evaluation, by default one where it trains and else all there are. What is found depends on batch and threads, never on
    workers.

    judge: what of a measured latency the budget limits, its `quiet`-state estimate or its `p90`.

    inherit: train the winner from the supernet's weights instead of from scratch. size, limit: resize images, take that many
    of them. profile: folder of the device's profile, by default `latency_models/<device>`; what it lacks of the space is
    measured first. warm_start: folder of a finished run of the same space, for another device or on other data: what was good
    there is tried first.

    Raises UserError for what a user can mend, before any work as far as it can be known then. The report says whether the
    measured winner keeps the budget.
    """
    folder, limits = RunFolder(Path(out)), Budget.parse(budget)
    for what, value, known in (("sampling", sampling, ("uniform", "sandwich")), ("judge", judge, ("quiet", "p90"))):
        if value not in known:
            raise UserError(f"{what} is {' or '.join(known)}", got=value)
    if min(evaluations, supernet_epochs, epochs) < 1:
        raise UserError("evaluations and epochs are at least 1", got=(evaluations, supernet_epochs, epochs))
    if min(batch, workers, 1 if threads is None else threads) < 1:
        raise UserError("batch, workers and threads are at least 1", got=(batch, workers, threads))
    target = load_device(device)
    fingerprint(target)  # refuses a device that is not here
    load_plugin("hwnas.search.strategies", parse_call(strategy, "strategy")[0], "strategy")
    model_class(predictor)
    options = parse_training(training)
    kind = _evaluator_class(evaluator, bool(options), inherit)
    groups = -(-batch // kind.together)
    if workers > groups:
        raise UserError(
            "no more workers than groups of candidates that are evaluated together",
            got=f"{workers} workers, batch {batch}, {kind.together} together",
            remedy=f"ask for a batch of {(workers - 1) * kind.together + 1}: what is found depends on it, never on the workers",
        )  # fmt: skip
    if threads is None:
        goes_on = resume and folder.config.exists()
        threads = folder.read_config().threads if goes_on else 1 if kind.sees_training else torch.get_num_threads()
    dataset = load_data(data, seed=seed, size=size, limit=limit, progress=lambda done, total: watch("data", done, total, ""))
    networks = _networks(space, dataset)
    searched = with_training_choices(networks, options)
    front = make_strategy(strategy, dry_admission(searched, limits), seed).seeks_front  # refuses its arguments
    config = Config(
        space=space, space_fingerprint=networks.fingerprint, data=data, data_fingerprint=_data_fingerprint(dataset), size=size,
        limit=limit, device=device, budget=dict(limits.limits), strategy=strategy, predictor=predictor, evaluator=evaluator,
        training={n: list(values) for n, values in options.items()}, judge=judge,
        evaluations=evaluations, batch=batch, threads=threads,
        supernet_epochs=supernet_epochs, sampling=sampling, epochs=epochs, inherit=inherit, seed=seed,
        prior=[list(g) for g in prior_genotypes(RunFolder(Path(warm_start)).history, searched)[:_PRIOR]] if warm_start else [],
    )  # fmt: skip
    # The supernet, if one is needed, is trained later.
    supernet = Supernet(searched, seed) if kind.needs_supernet else None
    scorer = make_evaluator(evaluator, Setting(searched, dataset.search, dataset.augmentation, seed, supernet, front))
    if folder.path.exists():
        folder.start(config, resume)  # a folder that may not be used is refused before any work
    if folder.report.exists():
        return folder.read_report()
    profile_path = (Path(profile) if profile else FOLDER / target.name) / "profile.jsonl"
    question = Question(config, limits, target, dataset, networks, scorer)
    return answer(Run(question, folder, profile_path, workers, resume, watch))


def _evaluator_class(text: str, training: bool, inherit: bool) -> type[Evaluator]:
    """Of the evaluator, if it does what else is asked for."""
    kind = find_evaluator(text)
    if training and not kind.sees_training:
        raise UserError(
            "training choices need an evaluator that trains", got=text,
            remedy="choose short_training, training or cross_validation",
        )  # fmt: skip
    if inherit and not kind.needs_supernet:
        raise UserError(
            "a winner inherits weights from a supernet, and this evaluator trains none", got=text,
            remedy="choose the evaluator supernet, or train the winner from scratch",
        )  # fmt: skip
    return kind


def _networks(text: str, dataset: Dataset) -> Space:
    """The space, if its input and its classes are the data's."""
    space = make_space(text, input=dataset.input, classes=len(dataset.classes))
    if space.input.dims != tuple(dataset.input):
        raise UserError("the space's input must be the data's", got=f"{space.input.dims} and {tuple(dataset.input)}")
    arch = space.decode(space.sample(random.Random(0)))
    if arch.specs[arch.output].dims != (len(dataset.classes),):
        raise UserError(
            "the space's classes must be the data's", got=f"{arch.specs[arch.output].dims[0]} and {len(dataset.classes)}"
        )
    return space


def _data_fingerprint(dataset: Dataset) -> str:
    """Names the images and labels that the search sees; the test split stays unread."""
    digest = hashlib.sha256()
    for split in (dataset.search.train, dataset.search.validation):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]
