"""How many evaluations a second does the inner search make, against pymoo's NSGA-II on the same lookup objective?

    python -m benchmarks.inner_search [--rounds 5] [--save]

20 layers of 12 choices, 2 objectives, each a sum of random table entries. Populations and generations are the same; pymoo runs
with its own integer operators (SBX and polynomial mutation, rounded) and with the discrete ones that suit choices (uniform
crossover, random replacement), and scores a population in one numpy call. The sides run in turn; `ratio` is ours over pymoo's,
`spread` the distance between the quartiles over the rounds. Hypervolumes are of the last populations, as shares of the exact
front's, which is known: it is built layer by layer. Last, spaces of up to 10^8 genotypes are enumerated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem as PymooProblem
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from benchmarks.output import Output, add_save, device_name
from hwnas.kernels.inner_search import Problem, Variation, enumerate_front, evolve, exact_front

LAYERS, CHOICES = 20, 12
SIZES = ((100, 100), (1000, 100))


def lookup(layers: int = LAYERS, choices: int = CHOICES, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem([rng.uniform(size=(choices, 2)) for _ in range(layers)], 2)


class PymooLookup(PymooProblem):  # type: ignore[misc]
    def __init__(self, problem: Problem) -> None:
        super().__init__(n_var=problem.layers, n_obj=2, xl=0, xu=np.array(problem.options) - 1, vtype=int)
        self.tables = np.stack(problem.tables)  # [layers, choices, 2]

    def _evaluate(self, x: np.ndarray, out: dict[str, np.ndarray], *args: Any, **kwargs: Any) -> None:
        out["F"] = self.tables[np.arange(self.n_var), x].sum(1)


class Replacement(Mutation):  # type: ignore[misc]
    """Each option is replaced by a random one with a chance of one over the layers."""

    def _do(self, problem: PymooProblem, x: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        rng = random_state or np.random.default_rng()
        replaced = rng.random(x.shape) < 1 / problem.n_var
        return np.where(replaced, rng.integers(0, CHOICES, x.shape), x)


def pymoo_operators(kind: str) -> dict[str, Any]:
    if kind == "discrete":
        return {"crossover": UniformCrossover(prob=0.9), "mutation": Replacement()}
    return {
        "crossover": SBX(prob=0.9, eta=15, vtype=float, repair=RoundingRepair()),
        "mutation": PM(prob=1.0, eta=20, vtype=float, repair=RoundingRepair()),
    }


Run = Callable[[int], tuple[np.ndarray, float]]  # seed -> values of the last population, seconds


def ours(problem: Problem, population: int, generations: int) -> Run:
    def run(seed: int) -> tuple[np.ndarray, float]:
        """One run takes milliseconds, too few for the clock of a shared host: the mean over a tenth of a second."""
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < 0.1:
            _, values, _ = evolve(problem, Variation(population=population, seed=seed), generations)
            runs += 1
        return values, (time.perf_counter() - start) / runs

    return run


def pymoo(problem: Problem, population: int, generations: int, kind: str) -> Run:
    def run(seed: int) -> tuple[np.ndarray, float]:
        algorithm = NSGA2(pop_size=population, sampling=IntegerRandomSampling(), **pymoo_operators(kind))
        start = time.perf_counter()
        found = minimize(PymooLookup(problem), algorithm, ("n_gen", generations), seed=seed)
        return found.F, time.perf_counter() - start

    return run


def quartile_distance(values: Sequence[float]) -> float:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low)


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    def row(
        case: str, metric: str, value: float, unit: str, baseline: str = "", other: float | None = None, spread: float = 0.0
    ) -> dict[str, Any]:
        return {
            "case": case, "metric": metric, "value": float(f"{value:.5g}"), "unit": unit,
            "baseline": baseline, "baseline_value": other and float(f"{other:.5g}"),
            "ratio": other and round(value / other, 1 if value > 10 * other else 4), "spread": float(f"{spread:.3g}"),
        }  # fmt: skip

    problem = lookup()
    exact = exact_front(problem)
    assert exact is not None
    volume = HV(ref_point=np.array([float(LAYERS)] * 2))
    full = volume(exact[1])
    for population, generations in SIZES:
        case = f"{LAYERS} layers of {CHOICES}, {population} x {generations}"
        sides = {"ours": ours(problem, population, generations)}
        for kind in ("integer", "discrete"):
            sides[f"pymoo {kind}"] = pymoo(problem, population, generations, kind)
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        volumes: dict[str, list[float]] = {name: [] for name in sides}
        for seed in range(rounds):
            for name, run in sides.items():
                values, seconds = run(seed)
                speeds[name].append(population * generations / seconds)
                volumes[name].append(volume(values) / full)
        for name in list(sides)[1:]:
            for metric, unit, found in (("speed", "evaluations/s", speeds), ("hypervolume", "of the exact front's", volumes)):
                own, other = statistics.median(found["ours"]), statistics.median(found[name])
                yield row(case, metric, own, unit, name, other, quartile_distance(found["ours"]))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        exact_front(problem)
        seconds.append(time.perf_counter() - start)
    yield row(
        f"{LAYERS} layers of {CHOICES}, exact front of {len(exact[0])} points",
        "layer_by_layer",
        1e3 * statistics.median(seconds),
        "ms",
    )
    small = lookup(8, 10)
    start = time.perf_counter()
    enumerate_front(small)
    taken = time.perf_counter() - start
    yield row("8 layers of 10", "enumeration", taken, "s")
    yield row("8 layers of 10", "enumeration_speed", small.size / taken, "genotypes/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_save(parser)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is at least 1; got {args.rounds}")
    out = Output("inner_search", args.save, "inner_search_cpu", device=device_name("cpu"))
    for row in rows(args.rounds):
        out.write(row)


if __name__ == "__main__":
    main()
