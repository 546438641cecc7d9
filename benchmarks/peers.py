"""Peers: searches of other libraries, on a table and within a budget, as their documentation sets them up."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import numpy as np

from hwnas.search.admission import Admission
from hwnas.search.loop import Candidate
from hwnas.search.strategy import Score, Trial
from hwnas.search.tabular import Table, TableSpace
from hwnas.space import Genotype

_PATIENCE = 10  # proposals per query: a side that proposes nothing new any more ends


class ExhaustedError(Exception):
    """The queries are used up."""


class Queries:
    """Counts what a search asks. `chosen` says which row it would name after some queries."""

    def __init__(self, table: Table, admission: Admission, metric: str, device: str | None, count: int) -> None:
        self.table, self.admission, self.count = table, admission, count
        self.evaluate = table.evaluator(metric, device)
        self.spent = 0.0
        self.answers: list[tuple[float, int, float]] = []  # spent, row, accuracy; of full evaluations
        self._asked = 0
        self._known: dict[Genotype, Candidate] = {}

    def score(self, trial: Trial) -> Score:
        """A strategy's query, paid by its fidelity."""
        effort = self.evaluate.fidelity(trial.fidelity)
        if self.spent + effort > self.count + 1e-9:
            raise ExhaustedError
        self.spent += effort
        candidate = self.evaluate(trial)
        if effort == 1:
            self.answers.append((self.spent, int(candidate.key), candidate.score.accuracy))
        return candidate.score

    def peer(self, codes: Genotype) -> tuple[float, float]:
        """Accuracy and violation of a peer's proposal. It pays once for each network within the budget, for others never."""
        self._asked += 1
        if self._asked > _PATIENCE * self.count:
            raise ExhaustedError
        codes = self.row(codes)
        violation = self.admission.violation(codes)
        if violation > 0:
            return 0.0, violation
        if codes not in self._known:
            self.score(Trial(codes))
            self._known[codes] = self.evaluate(Trial(codes))
        return self._known[codes].score.accuracy, 0.0

    def row(self, codes: Genotype) -> Genotype:
        """The codes of the table's row that is meant: a table may hold a part of all there could be."""
        space = self.admission.space
        return space.nearest(codes, random.Random(0)) if isinstance(space, TableSpace) else codes

    def chosen(self, count: int) -> int:
        """The row with the best accuracy among the first `count` queries."""
        within = [(accuracy, row) for spent, row, accuracy in self.answers if spent <= count + 1e-9]
        if not within:
            return self.table.row[self.admission.fallback]
        return max(within)[1]


def sizes(queries: Queries) -> list[int]:
    return [len(c.options) for c in queries.admission.space.choices]


def pymoo_nsga2(queries: Queries, seed: int, objectives: Callable[[Genotype], list[float]] | None = None) -> None:
    """Integer variables, simulated binary crossover and polynomial mutation, rounded, as in pymoo's guide."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    extra = objectives or (lambda codes: [])

    class Problem(ElementwiseProblem):
        def __init__(self) -> None:
            upper = np.array(sizes(queries)) - 1
            count = 1 + len(extra(queries.admission.fallback))
            super().__init__(n_var=len(upper), n_obj=count, n_ieq_constr=1, xl=np.zeros(len(upper)), xu=upper, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, list[float]], *args: object, **kwargs: object) -> None:
            codes = tuple(int(v) for v in x)
            accuracy, violation = queries.peer(codes)
            out["F"], out["G"] = [-accuracy, *extra(codes)], [violation]

    algorithm = NSGA2(
        pop_size=20, sampling=IntegerRandomSampling(), crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()), eliminate_duplicates=True,
    )  # fmt: skip
    minimize(Problem(), algorithm, ("n_gen", 10_000), seed=seed, verbose=False)


def _optuna(queries: Queries, sampler_of: Callable[..., object], seed: int,
            objectives: Callable[[Genotype], list[float]] | None = None) -> None:  # fmt: skip
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    extra = objectives or (lambda codes: [])
    constrained = sampler_of(seed=seed, constraints_func=lambda trial: (trial.user_attrs["violation"],))
    directions = ["maximize"] + ["minimize"] * len(extra(queries.admission.fallback))
    study = optuna.create_study(directions=directions, sampler=constrained)
    while True:
        trial = study.ask()
        codes = tuple(trial.suggest_categorical(f"c{i}", list(range(n))) for i, n in enumerate(sizes(queries)))
        accuracy, violation = queries.peer(codes)
        trial.set_user_attr("violation", violation)
        study.tell(trial, [accuracy, *extra(codes)])


def optuna_tpe(queries: Queries, seed: int, objectives: Callable[[Genotype], list[float]] | None = None) -> None:
    import optuna

    _optuna(queries, optuna.samplers.TPESampler, seed, objectives)


def optuna_nsga2(queries: Queries, seed: int, objectives: Callable[[Genotype], list[float]] | None = None) -> None:
    import optuna

    _optuna(queries, lambda **k: optuna.samplers.NSGAIISampler(population_size=20, **k), seed, objectives)


PEERS: dict[str, Callable[..., None]] = {
    "pymoo-nsga2": pymoo_nsga2, "optuna-tpe": optuna_tpe, "optuna-nsga2": optuna_nsga2,
}  # fmt: skip
