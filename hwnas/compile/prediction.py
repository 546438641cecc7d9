"""What is known of a genotype before it is evaluated: predicted latency and cost, and whether the budget admits it."""

from __future__ import annotations

import random
from dataclasses import asdict
from statistics import NormalDist, fmean

import numpy as np

from hwnas.compile.run import Run
from hwnas.errors import UserError
from hwnas.evaluation.training_choices import architecture, training_key
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.latency.predictor import LatencyPredictor, check_predictable, make_predictor
from hwnas.latency.profile import Profile
from hwnas.latency.sweep import profile_space
from hwnas.lower.cost import cost
from hwnas.lower.structure import structure
from hwnas.report.run import Predicted
from hwnas.search.admission import Admission, Traits, smallest
from hwnas.search.budget import LATENCY, Budget, describe
from hwnas.search.warm import WarmAdmission
from hwnas.space import Genotype, Space
from hwnas.storage import write_file

_MACS_PER_SECOND = 2e10  # of one processor, to an order of magnitude: what is proposed must not depend on a clock
_PRICED = 16  # networks whose mean cost prices an evaluation


def dry_admission(space: Space, budget: Budget) -> Admission:
    """Admits everything: for a strategy that is made only to see whether it can be. It knows the metrics' names."""
    known = {**costs(space.decode(space.sample(random.Random(0)))), **dict.fromkeys(budget.limits, 1.0)}
    return Admission(space, lambda g: 0.0, space.sample(random.Random(0)), lambda g: Traits(str(g), known))


def costs(arch: Arch) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(cost(arch)).items()}


class Prediction:
    """The profile and the predictor, if latency is limited, and what they say."""

    def __init__(self, run: Run) -> None:
        self.run, self.question = run, run.question
        self.profile: Profile | None = None
        self.predictor: LatencyPredictor | None = None
        # What the budget limits of a latency, over the quiet latency that is predicted: of most networks, and of a bad one.
        self.tail = self.highest_tail = 1.0
        if LATENCY in self.question.budget.limits:
            check_predictable(self.question.networks)
            with run.phase("profile"):
                self.profile = self._measured()
                run.canary_ms = self.profile.canary_ms
                self.predictor = make_predictor(self.question.config.predictor, self.profile, self.question.networks)
                seen = [v.measurement for v in self.profile.visits("network", self.question.networks.fingerprint)]
                judged = [self.question.judged_ms(m) / m.latency_ms for m in seen]
                self.tail, self.highest_tail = (float(v) for v in np.quantile(judged, (0.5, 0.95)))
        self._known: dict[Genotype, tuple[Traits, dict[str, float]]] = {}  # by architecture: with its bounds

    def _measured(self) -> Profile:
        """The run's own copy of the profile if it has one: profiling meanwhile must not change what a resumed run does.

        A truncated profile is an error, unless this is a run that goes on: then it is what the interrupted one left.
        """
        run, device = self.run, self.question.device
        if run.folder.profile.exists():
            return Profile.load(run.folder.profile, device)
        torn = run.profile_path.exists() and not run.resume
        profile = (Profile.load if torn else Profile.open)(run.profile_path, device)
        profile_space(
            profile, self.question.device, self.question.networks,
            progress=lambda phase, done, total: run.watch(phase, done, total, ""),
        )  # fmt: skip
        return profile

    def keep_profile(self) -> None:
        """The run's own copy."""
        if self.profile and not self.run.folder.profile.exists():
            write_file(self.run.folder.profile, self.profile.text())

    def metrics(self, genotype: Genotype) -> dict[str, float]:
        """Predicted latency, if it is limited, and cost."""
        return dict(self._of_network(genotype)[0].metrics)

    def bounds(self, genotype: Genotype) -> dict[str, float]:
        """What the budget admits by: of the predicted latency the upper end of its interval."""
        return self._of_network(genotype)[1]

    def traits(self, genotype: Genotype) -> Traits:
        """What a strategy may know of a genotype before it is scored. Networks trained differently are different ones to it."""
        space, known = self.question.space, self._of_network(genotype)[0]
        if not training_key(space, genotype):
            return known
        first = len(architecture(space, genotype))
        places = {c.name: v for c, v in zip(space.choices[first:], genotype[first:], strict=True)}
        key = f"{known.key} {training_key(space, genotype)}"
        return Traits(key, known.metrics, {**known.counts, "training": places}, known.chance)

    def _of_network(self, genotype: Genotype) -> tuple[Traits, dict[str, float]]:
        network = architecture(self.question.space, genotype)
        if network not in self._known:
            arch = simplify(self.question.networks.decode(network))
            metrics = costs(arch)
            bounds, chance = metrics, 1.0
            if self.predictor:
                predicted = self.predictor.predict([arch])[0]
                latency_ms, highest_ms = self.tail * predicted.latency_ms, self.highest_tail * predicted.high_ms
                metrics = {**metrics, LATENCY: latency_ms}
                bounds = {**metrics, LATENCY: highest_ms}
                chance = self._chance(latency_ms, highest_ms)
            self._known[network] = Traits(arch.key, metrics, structure(arch), chance), bounds
        return self._known[network]

    def _chance(self, latency_ms: float, highest_ms: float) -> float:
        """The probability that the measured latency keeps the budget, by the predictor's interval."""
        if highest_ms <= latency_ms:
            return 1.0
        deviation = (highest_ms - latency_ms) / NormalDist().inv_cdf(0.95)  # the interval holds nine in ten
        return NormalDist(latency_ms, deviation).cdf(self.question.budget.limits[LATENCY])

    def admission(self) -> Admission:
        """Candidates whose upper bounds meet the budget. UserError if no architecture's can."""
        budget, space = self.question.budget, self.question.networks
        for metric, limit in budget.limits.items():
            least = self.bounds(smallest(space, lambda g, m=metric: self.bounds(g)[m]))[metric]  # type: ignore[misc]
            if least > limit:
                raise UserError(
                    f"no architecture of {space.name} meets the budget", got=describe(metric, limit),
                    remedy=f"the smallest there is has {describe(metric, least, round_up=True)}: ask for that much,"
                    " or search a smaller space",
                )  # fmt: skip

        def violation(genotype: Genotype) -> float:
            return budget.violation(self.bounds(genotype))

        fallback = smallest(space, violation)
        if violation(fallback) > 0:
            near = ", ".join(describe(m, self.bounds(fallback)[m]) for m in budget.limits)
            raise UserError(
                f"no architecture of {space.name} was found that keeps all limits at once", got=str(budget),
                remedy=f"the nearest has {near}: relax one of them",
            )  # fmt: skip
        searched = self.question.space
        fallback += (0,) * (len(searched.choices) - len(fallback))
        prior = [tuple(g) for g in self.question.config.prior]
        if prior:
            return WarmAdmission(searched, violation, fallback, prior, self.traits, price=self._price())
        return Admission(searched, violation, fallback, self.traits, price=self._price())

    def _price(self) -> float:
        """Seconds that one evaluation takes, to an order of magnitude."""
        rng, networks = random.Random(0), self.question.networks
        macs = fmean(cost(networks.decode(networks.sample(rng))).macs for _ in range(_PRICED))
        return self.question.evaluator.images_passed() * macs / _MACS_PER_SECOND

    def predicted(self, arch: Arch) -> Predicted | None:
        """For the report, with the predictor's error."""
        if self.predictor is None or self.profile is None:
            return None
        error = asdict(self.predictor.error(self.profile.retest_error(self.question.networks)))
        error["retest_error"] = error.pop("retest")
        return Predicted(**asdict(self.predictor.predict([arch])[0]), predictor=self.question.config.predictor, **error)
