"""compile_network: a search space, data, a device and a budget in; a trained, verified, measured ONNX model out.

The wiring of the rooms, and nothing else. Every phase leaves a file in the run folder, so a killed run resumes where it was.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from hwnas.data import Dataset, load_data
from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.ir.text import print_arch
from hwnas.latency.device import FOLDER, Device, load_device
from hwnas.latency.measure import Measurement, measure
from hwnas.latency.predictor import LatencyPredictor, make_predictor
from hwnas.latency.profile import Profile, profile_space, retest_error
from hwnas.latency.session import Session, fingerprint
from hwnas.lower.cost import cost
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import ArchModule, to_torch
from hwnas.lower.weights import Weights
from hwnas.plugins import load as load_plugin
from hwnas.plugins import parse_call
from hwnas.report.progress import Watch, silent
from hwnas.report.run import Attempt, Config, Predicted, Quality, Report, RunFolder
from hwnas.search.admission import Admission, smallest
from hwnas.search.budget import LATENCY, Budget, describe
from hwnas.search.loop import Candidate, run_search
from hwnas.search.strategy import Score, make_strategy
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space
from hwnas.storage import Journal, write_file
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import Evaluation, evaluate, recalibrate
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import Recipe, Sampler, train_network, train_supernet

FINALISTS = 8  # measured together; three such groups at the most
GROUPS = 3
ONNX_TOLERANCE = 1e-4
MEASURE_SECONDS = 20.0


def compile_network(
    space: str,
    data: str,
    device: str = "cpu",
    budget: str | Sequence[str] = "",
    out: str | Path = "run",
    *,
    strategy: str = "evolution",
    predictor: str = "lookup_table",
    evaluations: int = 300,
    supernet_epochs: int = 40,
    sampling: str = "uniform",
    epochs: int = 60,
    inherit: bool = False,
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    profile: str | Path | None = None,
    resume: bool = False,
    watch: Watch = silent,
) -> Report:
    """Searches `space` for the most accurate network within `budget`, trains it and writes it to `out` as `model.onnx`.

    space: `name` or `name(argument=value)`; input size and classes are the data's. budget: like `2ms` or `2ms,1Mparams`.
    evaluations: architectures scored in the supernet. inherit: train the winner from the supernet's weights instead of from
    scratch. size, limit: resize images, take that many of them. profile: folder of the device's profile, by default
    `latency_models/<device>`; what it lacks of the space is measured first.

    Raises UserError for what a user can mend. The report says whether the measured winner keeps the budget.
    """
    folder, limits = RunFolder(Path(out)), Budget.parse(budget)
    if sampling not in ("uniform", "sandwich"):
        raise UserError("sampling is uniform or sandwich", got=sampling)
    if min(evaluations, supernet_epochs, epochs) < 1:
        raise UserError("evaluations and epochs are at least 1", got=(evaluations, supernet_epochs, epochs))
    target = load_device(device)
    fingerprint(target)  # refuses a device that is not here, before any work
    for package, plugin, kind in (
        ("search.strategies", strategy, "strategy"),
        ("latency.predictors", predictor, "latency predictor"),
    ):
        load_plugin(f"hwnas.{package}", parse_call(plugin, kind)[0], kind)
    dataset = load_data(data, seed=seed, size=size, limit=limit)
    where = make_space(space, input=dataset.input, classes=len(dataset.classes))
    if where.input.dims != tuple(dataset.input):
        raise UserError("the space's input must be the data's", got=f"{where.input.dims} and {tuple(dataset.input)}")
    outputs = where.decode(where.sample(random.Random(0)))
    if outputs.specs[outputs.output].dims != (len(dataset.classes),):
        raise UserError(
            "the space's classes must be the data's", got=f"{outputs.specs[outputs.output].dims[0]} and {len(dataset.classes)}"
        )
    config = Config(
        space=space, space_fingerprint=where.fingerprint, data=data, size=size, limit=limit, device=device,
        budget=dict(limits.limits), strategy=strategy, predictor=predictor, evaluations=evaluations,
        supernet_epochs=supernet_epochs, sampling=sampling, epochs=epochs, inherit=inherit, seed=seed,
    )  # fmt: skip
    if folder.path.exists():
        folder.start(config, resume)  # a folder that may not be used is refused before any work
    if folder.report.exists():
        return folder.read_report()
    profile_path = (Path(profile) if profile else FOLDER / target.name) / "profile.jsonl"
    return _Run(config, folder, limits, target, dataset, where, profile_path, watch).report()


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
        watch: Watch,
    ) -> None:
        self.config, self.folder, self.budget, self.device = config, folder, budget, device
        self.dataset, self.space, self.profile_path, self.watch = dataset, space, profile_path, watch
        self.seconds: dict[str, float] = {}
        self.predictor: LatencyPredictor | None = None
        self.profile: Profile | None = None
        self._metrics: dict[Genotype, dict[str, float]] = {}

    def report(self) -> Report:
        if LATENCY in self.budget.limits:
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
                strategy, self._evaluator(supernet), history, self.config.evaluations,
                lambda c, done: self.watch("search", done, self.config.evaluations, f"accuracy {c.score.accuracy:.3f}"),
            )  # fmt: skip
        with self._phase("finalists"):
            finalists = self._measure_finalists(supernet, candidates)
        within = [f for f in finalists if f.exceeds_by == 0] or sorted(finalists, key=lambda f: f.exceeds_by)[:1]
        report: Report | None = None
        for attempt in within:
            # A finalist on the edge of the budget can fall over it when measured again, trained; then the next one is taken.
            report = self._finish(supernet, attempt, finalists, len(candidates))
            if report.succeeded:
                break
        assert report is not None
        write_file(self.folder.report, report.model_dump_json(indent=2) + "\n")
        return report

    def _profile(self) -> Profile:
        """The run's own copy of the profile if it has one: profiling meanwhile must not change what a resumed run does."""
        if self.folder.profile.exists():
            return Profile.load(self.folder.profile, self.device)
        profile = Profile.open(self.profile_path, self.device)
        profile_space(profile, self.space, progress=lambda phase, done, total: self.watch(phase, done, total, ""))
        return profile

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def metrics(self, genotype: Genotype) -> dict[str, float]:
        """Predicted latency, if it is limited, and cost."""
        if genotype not in self._metrics:
            arch = simplify(self.space.decode(genotype))
            self._metrics[genotype] = {k: float(v) for k, v in asdict(cost(arch)).items()}
            if self.predictor:
                self._metrics[genotype][LATENCY] = self.predictor.predict([arch])[0].latency_ms
        return self._metrics[genotype]

    def _admission(self) -> Admission:
        """UserError if no architecture can meet the budget."""
        for metric, limit in self.budget.limits.items():
            least = self.metrics(smallest(self.space, lambda g, m=metric: self.metrics(g)[m]))[metric]  # type: ignore[misc]
            if least > limit:
                raise UserError(
                    f"no architecture of {self.space.name} meets the budget", got=describe(metric, limit),
                    remedy=f"the smallest there is has {describe(metric, least, round_up=True)}: ask for that much,"
                    " or search a smaller space",
                )  # fmt: skip

        def violation(genotype: Genotype) -> float:
            return self.budget.violation(self.metrics(genotype))

        fallback = smallest(self.space, violation)
        if violation(fallback) > 0:
            near = ", ".join(describe(m, self.metrics(fallback)[m]) for m in self.budget.limits)
            raise UserError(
                f"no architecture of {self.space.name} was found that keeps all limits at once", got=str(self.budget),
                remedy=f"the nearest has {near}: relax one of them",
            )  # fmt: skip
        return Admission(self.space, violation, fallback)

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

    def _evaluator(self, supernet: Supernet) -> Callable[[Genotype], Candidate]:
        scores: dict[str, Score] = {}

        def evaluate_genotype(genotype: Genotype) -> Candidate:
            arch = simplify(self.space.decode(genotype))
            if arch.key not in scores:
                network = to_torch(arch, derive(supernet, genotype))
                recalibrate(network, self.dataset.search.train, seed=self.config.seed)
                found = evaluate(network, self.dataset.search.validation)
                scores[arch.key] = Score(found.accuracy, found.loss)
            return Candidate(genotype, arch.key, scores[arch.key], self.metrics(genotype))

        return evaluate_genotype

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

    def _finish(self, supernet: Supernet, attempt: Attempt, finalists: list[Attempt], evaluated: int) -> Report:
        genotype = tuple(attempt.genotype)
        arch = simplify(self.space.decode(genotype))
        with self._phase("training"):
            network = to_torch(arch, derive(supernet, genotype) if self.config.inherit else None, self.config.seed)
            trained = train_network(
                network, self.dataset.search, self.dataset.augmentation, Recipe(epochs=self.config.epochs),
                seed=self.config.seed, progress=lambda d, t, loss: self.watch("training", d, t, f"loss {loss:.3f}"),
            )  # fmt: skip
            test = evaluate(network, self.dataset.test.split)
        predicted = self._predicted(arch)
        metadata = {"hwnas.data": self.config.data, "hwnas.device": self.device.name, "hwnas.budget": str(self.budget)}
        if predicted:
            metadata["hwnas.predicted_ms"] = f"{predicted.latency_ms:.6g}"
        model = to_onnx(arch, network.weights(), metadata).SerializeToString()
        difference = verify(model, network, self.dataset.test.split.images[:256])
        with self._phase("measuring"):
            (found,) = self._measure([model], "measuring")
        costs = cost(arch)
        exceeds = self.budget.violation({**{k: float(v) for k, v in asdict(costs).items()}, LATENCY: found.latency_ms})
        attempt = attempt.model_copy(update={"measured_ms": found.latency_ms, "exceeds_by": exceeds})
        write_file(self.folder.arch, print_arch(arch))
        write_file(self.folder.weights, save_safetensors(network.weights()))
        write_file(self.folder.model, model)
        return Report(
            succeeded=exceeds == 0, config=self.config, key=arch.key, choices=self.space.describe(genotype), **asdict(costs),
            predicted=predicted, measured=found, fingerprint=fingerprint(self.device), test=_quality(test),
            validation=_quality(trained.validation), trained_epochs=trained.epochs, onnx_max_error=difference,
            finalists=[attempt if a.key == attempt.key else a for a in finalists], evaluated=evaluated, seconds=self.seconds,
            versions=versions(),
        )  # fmt: skip

    def _predicted(self, arch: Arch) -> Predicted | None:
        if self.predictor is None or self.profile is None:
            return None
        error = asdict(self.predictor.error(retest_error(self.profile, self.space)))
        error["retest_error"] = error.pop("retest")
        return Predicted(**asdict(self.predictor.predict([arch])[0]), predictor=self.config.predictor, **error)


def verify(model: bytes, network: ArchModule, images: NDArray[np.float32]) -> float:
    """The largest difference between ONNX Runtime on the processor and torch, relative to the largest logit.

    Raises RuntimeError over 1e-4: the exported model is then not the trained network.
    """
    network.eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    found = Session(model, Device(name="verify", threads=1)).predict(images)
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= ONNX_TOLERANCE:
        raise RuntimeError(f"the exported model differs from the trained network by {difference:.2e} of its largest logit")
    return difference


def read_weights(path: Path) -> Weights:
    """The weights of a run. UserError if the file is not one of safetensors."""
    try:
        weights: Weights = load_safetensors(path.read_bytes())
    except Exception as error:
        raise UserError(f"{path} is not a safetensors file", got=str(error)) from None
    return weights


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    names = ("hwnas", "torch", "onnx", "onnxruntime", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _journal(path: Path, header: dict[str, object]) -> Journal:
    """The journal to continue, or a new one."""
    if not path.exists():
        return Journal.create(path, header)
    journal = Journal.resume(path)
    if journal.header != header:
        raise UserError(f"{path} belongs to another run", got=str(journal.header), remedy="search into a new folder")
    return journal


def _quality(found: Evaluation) -> Quality:
    return Quality(accuracy=found.accuracy, macro_f1=found.macro_f1, loss=found.loss)
