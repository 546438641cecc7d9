"""compile_network: a search space, data, a device and a budget in; a trained, verified, measured ONNX model out.

The wiring of the rooms, and nothing else. Every phase leaves a file in the run folder, so a killed run resumes where it was.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from safetensors.numpy import save as save_safetensors

from hwnas.data import Dataset, Split, load_data
from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.ir.text import print_arch
from hwnas.latency.device import FOLDER, Device, load_device
from hwnas.latency.measure import Measurement, measure
from hwnas.latency.predictor import DEFAULT as DEFAULT_PREDICTOR
from hwnas.latency.predictor import LatencyPredictor, check_predictable, make_predictor
from hwnas.latency.profile import Profile, profile_space, retest_error
from hwnas.latency.target import fingerprint
from hwnas.latency.verify import verify
from hwnas.lower.cost import cost
from hwnas.lower.onnx import to_onnx
from hwnas.lower.structure import structure
from hwnas.lower.torch import ArchModule, to_torch
from hwnas.plugins import load as load_plugin
from hwnas.plugins import parse_call
from hwnas.report.progress import Watch, silent
from hwnas.report.run import Attempt, Config, Input, Predicted, Quality, Report, RunFolder, Tradeoff, versions
from hwnas.search.admission import Admission, Traits, smallest
from hwnas.search.budget import LATENCY, Budget, describe
from hwnas.search.loop import Candidate, one_by_one, run_search
from hwnas.search.pareto import pareto_front
from hwnas.search.strategy import Score, Trial, make_strategy
from hwnas.search.warm import WarmAdmission, prior_genotypes
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space
from hwnas.storage import Journal, write_file
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import Evaluation, evaluate, recalibrate
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import Recipe, Sampler, Trained, train_network, train_supernet

FINALISTS = 8  # measured together; three such groups at the most
GROUPS = 3
MEASURE_SECONDS = 20.0
PRIOR = 64  # genotypes of a finished run that a warm start remembers


def compile_network(
    space: str,
    data: str,
    device: str = "cpu",
    budget: str | Sequence[str] = "",
    out: str | Path = "run",
    *,
    strategy: str = "auto",
    predictor: str = DEFAULT_PREDICTOR,
    evaluations: int = 300,
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
    evaluations: architectures scored in the supernet. inherit: train the winner from the supernet's weights instead of from
    scratch. size, limit: resize images, take that many of them. profile: folder of the device's profile, by default
    `latency_models/<device>`; what it lacks of the space is measured first. warm_start: folder of a finished run of the same
    space, for another device or on other data: what was good there is tried first.

    Raises UserError for what a user can mend. The report says whether the measured winner keeps the budget.
    """
    folder, limits = RunFolder(Path(out)), Budget.parse(budget)
    if sampling not in ("uniform", "sandwich"):
        raise UserError("sampling is uniform or sandwich", got=sampling)
    if min(evaluations, supernet_epochs, epochs) < 1:
        raise UserError("evaluations and epochs are at least 1", got=(evaluations, supernet_epochs, epochs))
    target = load_device(device)
    if target.precision != "fp32":
        raise UserError(
            f"a search delivers float32 models, and {target.name} measures {target.precision}", got=device,
            remedy="search for a device of precision fp32; hwnas measure tells what a model takes when it is quantised",
        )  # fmt: skip
    fingerprint(target)  # refuses a device that is not here, before any work
    for package, plugin, kind in (
        ("search.strategies", strategy, "strategy"),
        ("latency.predictors", predictor, "latency predictor"),
    ):
        load_plugin(f"hwnas.{package}", parse_call(plugin, kind)[0], kind)
    dataset = load_data(data, seed=seed, size=size, limit=limit, progress=lambda done, total: watch("data", done, total, ""))
    where = make_space(space, input=dataset.input, classes=len(dataset.classes))
    if where.input.dims != tuple(dataset.input):
        raise UserError("the space's input must be the data's", got=f"{where.input.dims} and {tuple(dataset.input)}")
    outputs = where.decode(where.sample(random.Random(0)))
    if outputs.specs[outputs.output].dims != (len(dataset.classes),):
        raise UserError(
            "the space's classes must be the data's", got=f"{outputs.specs[outputs.output].dims[0]} and {len(dataset.classes)}"
        )
    config = Config(
        space=space, space_fingerprint=where.fingerprint, data=data, data_fingerprint=_data_fingerprint(dataset), size=size,
        limit=limit, device=device,
        budget=dict(limits.limits), strategy=strategy, predictor=predictor, evaluations=evaluations,
        supernet_epochs=supernet_epochs, sampling=sampling, epochs=epochs, inherit=inherit, seed=seed,
        prior=[list(g) for g in prior_genotypes(RunFolder(Path(warm_start)).history, where)[:PRIOR]] if warm_start else [],
    )  # fmt: skip
    if folder.path.exists():
        folder.start(config, resume)  # a folder that may not be used is refused before any work
    if folder.report.exists():
        return folder.read_report()
    profile_path = (Path(profile) if profile else FOLDER / target.name) / "profile.jsonl"
    return _Run(config, folder, limits, target, dataset, where, profile_path, resume, watch).report()


@dataclass(frozen=True)
class _Trained:
    """A finalist after training. `difference`: of its exported model from torch."""

    attempt: Attempt
    network: ArchModule
    trained: Trained
    model: bytes
    difference: float
    measurement: Measurement


class _Run:
    """One run: its question, and the phases that answer it."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        budget: Budget,
        device: Device,
        dataset: Dataset,
        space: Space,
        profile_path: Path,
        resume: bool,
        watch: Watch,
    ) -> None:
        self.config, self.folder, self.budget, self.device = config, folder, budget, device
        self.dataset, self.space, self.profile_path, self.resume, self.watch = dataset, space, profile_path, resume, watch
        self._seconds: list[dict[str, object]] = []  # of phases that ended and are not written down yet
        self.predictor: LatencyPredictor | None = None
        self.profile: Profile | None = None
        self._metrics: dict[Genotype, dict[str, float]] = {}
        self._highest_ms: dict[Genotype, float] = {}
        self._traits: dict[Genotype, Traits] = {}

    def report(self) -> Report:
        if LATENCY in self.budget.limits:
            check_predictable(self.space)
            with self._phase("profile"):
                self.profile = self._profile()
                self.predictor = make_predictor(self.config.predictor, self.profile, self.space)
        admission = self._admission()
        strategy = make_strategy(self.config.strategy, admission, self.config.seed)
        self.folder.start(self.config, resume=True)
        if self.profile and not self.folder.profile.exists():
            write_file(self.folder.profile, self.profile.path.read_bytes())
        with self._phase("supernet"):
            supernet = self._train_supernet()
        with self._phase("search"):
            history = _journal(self.folder.history, {"format": "hwnas history 1", "seed": self.config.seed})
            candidates = run_search(
                strategy, one_by_one(self._evaluator(supernet, history)), history, self.config.evaluations,
                lambda c, done: self.watch("search", done, self.config.evaluations, f"accuracy {c.score.accuracy:.3f}"),
            )  # fmt: skip
        with self._phase("finalists"):
            finalists = self._measure_finalists(supernet, _fully_scored(candidates))
        within = [f for f in finalists if f.exceeds_by == 0] or sorted(finalists, key=lambda f: f.exceeds_by)[:1]
        best: _Trained | None = None
        for attempt in within:
            # A finalist on the edge of the budget can fall over it when measured again, trained; then the next one is taken.
            trained = self._train(supernet, attempt)
            finalists = [trained.attempt if f.key == attempt.key else f for f in finalists]
            if best is None or trained.attempt.exceeds_by < best.attempt.exceeds_by:
                best = trained
            if best.attempt.exceeds_by == 0:
                break
        assert best is not None
        return self._write(best, finalists, candidates)

    def _profile(self) -> Profile:
        """The run's own copy of the profile if it has one: profiling meanwhile must not change what a resumed run does.

        A truncated profile is an error, unless this is a run that goes on: then it is what the interrupted one left.
        """
        if self.folder.profile.exists():
            return Profile.load(self.folder.profile, self.device)
        torn = self.profile_path.exists() and not self.resume
        profile = (Profile.load if torn else Profile.open)(self.profile_path, self.device)
        profile_space(profile, self.space, progress=lambda phase, done, total: self.watch(phase, done, total, ""))
        return profile

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds.append({"phase": name, "seconds": round(time.perf_counter() - start, 3)})
        if self.folder.config.exists():
            journal = _journal(self.folder.phases, {"format": "hwnas phases 1"})
            while self._seconds:
                journal.append(self._seconds.pop(0))

    def metrics(self, genotype: Genotype) -> dict[str, float]:
        """Predicted latency, if it is limited, and cost."""
        if genotype not in self._metrics:
            arch = simplify(self.space.decode(genotype))
            self._metrics[genotype] = {k: float(v) for k, v in asdict(cost(arch)).items()}
            if self.predictor:
                predicted = self.predictor.predict([arch])[0]
                self._metrics[genotype][LATENCY] = predicted.latency_ms
                self._highest_ms[genotype] = predicted.high_ms
        return self._metrics[genotype]

    def bounds(self, genotype: Genotype) -> dict[str, float]:
        """What the budget admits by: of the predicted latency the upper end of its interval."""
        metrics = self.metrics(genotype)
        return {**metrics, LATENCY: self._highest_ms[genotype]} if self.predictor else metrics

    def traits(self, genotype: Genotype) -> Traits:
        """What a strategy may know of a genotype before it is scored."""
        if genotype not in self._traits:
            arch = simplify(self.space.decode(genotype))
            self._traits[genotype] = Traits(arch.key, self.metrics(genotype), structure(arch), self._chance(genotype))
        return self._traits[genotype]

    def _chance(self, genotype: Genotype) -> float:
        """The probability that the measured latency keeps the budget, by the predictor's interval."""
        latency, highest = self.metrics(genotype).get(LATENCY, 0.0), self._highest_ms.get(genotype, 0.0)
        if highest <= latency:
            return 1.0
        deviation = (highest - latency) / NormalDist().inv_cdf(0.95)  # the interval holds nine in ten
        return NormalDist(latency, deviation).cdf(self.budget.limits[LATENCY])

    def _admission(self) -> Admission:
        """Candidates whose upper bounds meet the budget. UserError if no architecture's can."""
        for metric, limit in self.budget.limits.items():
            least = self.bounds(smallest(self.space, lambda g, m=metric: self.bounds(g)[m]))[metric]  # type: ignore[misc]
            if least > limit:
                raise UserError(
                    f"no architecture of {self.space.name} meets the budget", got=describe(metric, limit),
                    remedy=f"the smallest there is has {describe(metric, least, round_up=True)}: ask for that much,"
                    " or search a smaller space",
                )  # fmt: skip

        def violation(genotype: Genotype) -> float:
            return self.budget.violation(self.bounds(genotype))

        fallback = smallest(self.space, violation)
        if violation(fallback) > 0:
            near = ", ".join(describe(m, self.bounds(fallback)[m]) for m in self.budget.limits)
            raise UserError(
                f"no architecture of {self.space.name} was found that keeps all limits at once", got=str(self.budget),
                remedy=f"the nearest has {near}: relax one of them",
            )  # fmt: skip
        prior = [tuple(g) for g in self.config.prior]
        if prior:
            return WarmAdmission(self.space, violation, fallback, prior, self.traits)
        return Admission(self.space, violation, fallback, self.traits)

    def _train_supernet(self) -> Supernet:
        supernet = Supernet(self.space, self.config.seed)
        size = {sign: smallest(self.space, lambda g, s=sign: s * cost(self.space.decode(g)).macs) for sign in (1, -1)}  # type: ignore[misc]
        sampler = Sampler(self.config.sampling, smallest=size[1], largest=size[-1])  # type: ignore[arg-type]
        recipe = Recipe(epochs=self.config.supernet_epochs)
        train_supernet(
            supernet, self.dataset.search, self.dataset.augmentation, recipe, sampler, seed=self.config.seed,
            checkpoint=self.folder.supernet, progress=lambda d, t, loss: self.watch("supernet", d, t, f"loss {loss:.3f}"),
        )  # fmt: skip
        return supernet

    def _evaluator(self, supernet: Supernet, history: Journal) -> Callable[[Trial], Candidate]:
        # Two genotypes of one network may take its weights from different slots: the first to be scored counts, also when the
        # search was interrupted in between.
        scores: dict[tuple[str, float], Score] = {}
        for row in history.rows:
            score = Score(row.get("accuracy", 0.0), row.get("loss", 0.0))
            scores.setdefault((str(row.get("key")), row.get("fidelity", 1.0)), score)
        data = self.dataset.search

        def evaluate_trial(trial: Trial) -> Candidate:
            """A lower fidelity looks at that share of the validation split."""
            arch = simplify(self.space.decode(trial.genotype))
            scored = arch.key, trial.fidelity
            if scored not in scores:
                network = to_torch(arch, derive(supernet, trial.genotype))
                recalibrate(network, data.train, seed=self.config.seed)
                images = max(1, round(trial.fidelity * len(data.validation.labels)))
                found = evaluate(network, Split(data.validation.images[:images], data.validation.labels[:images]))
                scores[scored] = Score(found.accuracy, found.loss)
            return Candidate(trial, arch.key, scores[scored], self.metrics(trial.genotype))

        return evaluate_trial

    def _measure_finalists(self, supernet: Supernet, candidates: Sequence[Candidate]) -> list[Attempt]:
        """The best candidates, measured; group after group until one keeps the budget. What was measured stays measured."""
        best = list({c.key: c for c in sorted(candidates, key=lambda c: c.score.rank)}.values())[::-1]
        journal = _journal(self.folder.finalists, {"format": "hwnas finalists 1"})
        attempts = [Attempt.model_validate(row) for row in journal.rows]
        for start in range(0, min(len(best), GROUPS * FINALISTS), FINALISTS):
            group = best[start : start + FINALISTS]
            done = {a.key for a in attempts}
            left = [c for c in group if c.key not in done]
            archs = [simplify(self.space.decode(c.genotype)) for c in left]
            models = [to_onnx(a, derive(supernet, c.genotype)).SerializeToString() for a, c in zip(archs, left, strict=True)]
            for candidate, found in zip(left, self._measure(models, "finalists"), strict=True):
                measured = {**candidate.metrics, LATENCY: found.latency_ms}
                attempt = Attempt(
                    key=candidate.key, genotype=list(candidate.genotype), search_accuracy=candidate.score.accuracy,
                    predicted_ms=candidate.metrics.get(LATENCY), measured_ms=found.latency_ms,
                    exceeds_by=self.budget.violation(measured),
                )  # fmt: skip
                journal.append(attempt.model_dump())
                attempts.append(attempt)
            if any(a.exceeds_by == 0 for a in attempts):
                break
        return attempts

    def _measure(self, models: list[bytes], phase: str) -> list[Measurement]:
        if not models:
            return []
        canary = self.profile.canary_ms if self.profile else None
        told = lambda share: self.watch(phase, round(100 * share), 100, "")  # noqa: E731
        found = measure(models, self.device, seconds=MEASURE_SECONDS, min_rounds=30, canary_ms=canary, progress=told)
        self.watch(phase, 100, 100, "")
        return found.models

    def _train(self, supernet: Supernet, attempt: Attempt) -> _Trained:
        """A finalist, trained, exported, verified and measured."""
        genotype = tuple(attempt.genotype)
        arch = simplify(self.space.decode(genotype))
        with self._phase("training"):
            network = to_torch(arch, derive(supernet, genotype) if self.config.inherit else None, self.config.seed)
            trained = train_network(
                network, self.dataset.search, self.dataset.augmentation, Recipe(epochs=self.config.epochs),
                seed=self.config.seed, progress=lambda d, t, loss: self.watch("training", d, t, f"loss {loss:.3f}"),
            )  # fmt: skip
        model = to_onnx(arch, network.weights(), self._metadata(arch)).SerializeToString()
        difference = verify(model, network, self.dataset.test.split.images[:256])
        with self._phase("measuring"):
            (found,) = self._measure([model], "measuring")
        exceeds = self.budget.violation({**{k: float(v) for k, v in asdict(cost(arch)).items()}, LATENCY: found.latency_ms})
        attempt = attempt.model_copy(update={"measured_ms": found.latency_ms, "exceeds_by": exceeds})
        return _Trained(attempt, network, trained, model, difference, found)

    def _write(self, best: _Trained, finalists: list[Attempt], candidates: Sequence[Candidate]) -> Report:
        """The answer: the test split is seen here, once, by the network that was chosen."""
        arch, genotype = best.network.arch, tuple(best.attempt.genotype)
        with self._phase("testing"):
            test = evaluate(best.network, self.dataset.test.split)
        seconds: dict[str, float] = {}
        for row in Journal.read(self.folder.phases).rows:
            seconds[row["phase"]] = round(seconds.get(row["phase"], 0.0) + row["seconds"], 3)
        metric = next(iter(self.budget.limits))
        front = pareto_front(_fully_scored(candidates), lambda c: c.metrics[metric], lambda c: c.score.accuracy)
        report = Report(
            succeeded=best.attempt.exceeds_by == 0, config=self.config, key=arch.key, choices=self.space.describe(genotype),
            **asdict(cost(arch)), predicted=self._predicted(arch), measured=best.measurement,
            fingerprint=fingerprint(self.device), test=_quality(test), validation=_quality(best.trained.validation),
            trained_epochs=best.trained.epochs, onnx_max_error=best.difference, input=self._input(), finalists=finalists,
            pareto=[
                Tradeoff(key=c.key, genotype=list(c.genotype), search_accuracy=c.score.accuracy, metrics=c.metrics)
                for c in front
            ],
            evaluated=len(candidates), seconds=seconds, versions=versions(),
        )  # fmt: skip
        write_file(self.folder.arch, print_arch(arch))
        write_file(self.folder.weights, save_safetensors(best.network.weights()))
        write_file(self.folder.model, best.model)
        write_file(self.folder.report, report.model_dump_json(indent=2) + "\n")
        return report

    def _input(self) -> Input:
        data = self.dataset
        mean, std = (np.atleast_1d(v).astype(float).ravel().tolist() for v in (data.mean, data.std))
        return Input(dims=list(data.input), mean=mean, std=std, classes=list(data.classes))

    def _metadata(self, arch: Arch) -> dict[str, str]:
        """What a model carries about its origin, and what its user needs to feed it."""
        facts = {
            "data": self.config.data,
            "device": self.device.name,
            "budget": str(self.budget),
            "seed": str(self.config.seed),
        }
        predicted = self._predicted(arch)
        if predicted:
            facts["predicted_ms"] = f"{predicted.latency_ms:.6g}"
        facts["input"] = self._input().model_dump_json()
        facts["versions"] = json.dumps(versions())
        return {f"hwnas.{key}": value for key, value in facts.items()}

    def _predicted(self, arch: Arch) -> Predicted | None:
        if self.predictor is None or self.profile is None:
            return None
        error = asdict(self.predictor.error(retest_error(self.profile, self.space)))
        error["retest_error"] = error.pop("retest")
        return Predicted(**asdict(self.predictor.predict([arch])[0]), predictor=self.config.predictor, **error)


def _journal(path: Path, header: dict[str, object]) -> Journal:
    """The journal to continue, or a new one."""
    if not path.exists():
        return Journal.create(path, header)
    journal = Journal.resume(path)
    if journal.header != header:
        raise UserError(f"{path} belongs to another run", got=str(journal.header), remedy="search into a new folder")
    return journal


def _fully_scored(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those whose score can be compared: of the highest fidelity that any has."""
    highest = max(c.trial.fidelity for c in candidates)
    return [c for c in candidates if c.trial.fidelity == highest]


def _data_fingerprint(dataset: Dataset) -> str:
    """Names the images and labels that the search sees; the test split stays unread."""
    digest = hashlib.sha256()
    for split in (dataset.search.train, dataset.search.validation):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]


def _quality(found: Evaluation) -> Quality:
    return Quality(accuracy=found.accuracy, macro_f1=found.macro_f1, loss=found.loss)
