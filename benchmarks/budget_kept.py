"""How often is a budget broken? Searches at budgets spread over the space's range, their winners measured again later.

    python -m benchmarks.budget_kept [--space SPACE] [--device cpu] [--searches 20] [--evaluations 300] [--save]

What is judged is the budget, so a network's multiply-accumulates stand in for its accuracy and nothing is trained: searches
then press against the budget at least as hard as with accuracy. All else is as in `hwnas search`: evolution among those whose
predicted upper bound meets the budget, the eight best measured together, the best of those within the budget chosen, and its
measurement with it. When all searches are done, all winners are measured again, in another process. A winner breaks its budget
where that latency is above it; it does so by more than the retest error where it is above by more than the mean distance of the
two measurements. A search whose finalists all miss the budget says so: it failed, and kept nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import Output, add_save
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device, load_device
from hwnas.latency.measure import measure
from hwnas.latency.predictor import DEFAULT, LatencyPredictor, Prediction, make_predictor
from hwnas.latency.processor import processor
from hwnas.latency.profile import Profile
from hwnas.latency.sweep import profile_space
from hwnas.lower.cost import cost
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.search.admission import Admission, smallest
from hwnas.search.loop import Candidate, one_by_one, run_search
from hwnas.search.strategy import Score, Trial, make_strategy
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space
from hwnas.storage import Journal

SPACE = "mobilenet(input=(3,96,96),classes=100)"
FINALISTS = 8


class Predicted:
    """Predictions of a space's genotypes, each asked for once."""

    def __init__(self, space: Space, predictor: LatencyPredictor) -> None:
        self.space, self.predictor = space, predictor
        self._known: dict[Genotype, Prediction] = {}

    def __call__(self, genotype: Genotype) -> Prediction:
        if genotype not in self._known:
            self._known[genotype] = self.predictor.predict([simplify(self.space.decode(genotype))])[0]
        return self._known[genotype]


def search(predicted: Predicted, budget_ms: float, evaluations: int, seed: int, folder: Path) -> list[Candidate]:
    """The finalists, the best first."""
    space = predicted.space

    def violation(genotype: Genotype) -> float:
        return max(0.0, predicted(genotype).high_ms / budget_ms - 1)

    fallback = smallest(space, lambda genotype: predicted(genotype).high_ms, seed)

    def evaluate(trial: Trial) -> Candidate:
        arch = simplify(space.decode(trial.genotype))
        metrics = {"latency_ms": predicted(trial.genotype).latency_ms}
        return Candidate(trial, arch.key, Score(float(cost(arch).macs), 0.0), metrics)

    strategy = make_strategy("evolution", Admission(space, violation, fallback), seed)
    history = Journal.create(folder / f"history-{seed}.jsonl", {"budget_ms": budget_ms})
    evaluated = run_search(strategy, one_by_one(evaluate), history, evaluations)
    found = {c.key: c for c in evaluated if violation(c.genotype) == 0}
    return sorted(found.values(), key=lambda c: -c.score.accuracy)[:FINALISTS]


def measure_finalists(
    space: Space, finalists: list[Candidate], device: Device, canary_ms: float | None
) -> list[tuple[bytes, float]]:
    models = []
    for candidate in finalists:
        arch = simplify(space.decode(candidate.genotype))
        models.append(to_onnx(arch, init_weights(arch)).SerializeToString())
    found = measure(models, device, seconds=10.0, min_rounds=20, canary_ms=canary_ms)
    return [(model, m.latency_ms) for model, m in zip(models, found.models, strict=True)]


def measured_again(models: list[bytes], device: str, seconds: float) -> list[float]:
    """In another process, all against each other."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:02}.onnx" for i in range(len(models))]
        for path, model in zip(paths, models, strict=True):
            path.write_bytes(model)
        command = [sys.executable, "-c", "from hwnas.cli import main; main()", "measure", *map(str, paths)]
        command += ["--device", device, "--seconds", str(seconds), "--json"]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if found.returncode not in (0, 1):  # 1: a number was noisy; it is reported all the same
            raise SystemExit(found.returncode)
        output = found.stdout
    return [float(row["latency_ms"]) for row in json.loads(output)["measurements"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--networks", type=int, default=60, help="networks to profile for the predictor")
    parser.add_argument("--profile", type=Path, default=Path("runs/budget_kept"), help="folder of the profile")
    parser.add_argument("--pause", type=float, default=120.0, help="seconds before the winners are measured again")
    add_save(parser)
    args = parser.parse_args()
    device, space = load_device(args.device), make_space(args.space)
    profile = Profile.open(args.profile / "profile.jsonl", device)
    profile_space(profile, device, space, networks=args.networks)
    predicted = Predicted(space, make_predictor(DEFAULT, profile, space))
    rng = random.Random(5)
    sampled = sorted(predicted(space.sample(rng)).latency_ms for _ in range(200))
    least = predicted(smallest(space, lambda genotype: predicted(genotype).high_ms)).high_ms
    budgets = np.linspace(1.05 * least, sampled[-1], args.searches)  # from the smallest network to the largest of 200
    winners: list[tuple[float, float, bytes]] = []
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed, budget_ms in enumerate(budgets.tolist()):
            finalists = search(predicted, budget_ms, args.evaluations, seed, Path(folder))
            within = [(m, ms) for m, ms in measure_finalists(space, finalists, device, profile.canary_ms) if ms <= budget_ms]
            if within:
                winners.append((budget_ms, within[0][1], within[0][0]))
            else:
                failed += 1
    time.sleep(args.pause)
    again = measured_again([model for *_, model in winners], device.name, max(60.0, 3.0 * len(winners)))
    retest = float(np.mean([abs(ms / first - 1) for ms, (_, first, _) in zip(again, winners, strict=True)]))
    over = [ms / budget_ms - 1 for ms, (budget_ms, _, _) in zip(again, winners, strict=True)]
    stamp = {
        "searches": args.searches, "retest": round(retest, 5), "over_by": [round(v, 4) for v in over],
        "budgets_ms": [round(b, 4) for b in budgets.tolist()],
    }  # fmt: skip
    out = Output("budget_kept", args.save, f"budget_kept_{device.name}", device=f"{processor()}, {device.name}", **stamp)
    rows: list[dict[str, Any]] = [
        {"metric": "budgets_broken", "value": sum(v > 0 for v in over), "unit": "winners"},
        {"metric": "budgets_broken_by_more_than_retest", "value": sum(v > retest for v in over), "unit": "winners"},
        {"metric": "searches_that_said_they_failed", "value": failed, "unit": "searches"},
        {"metric": "largest_excess", "value": round(max(over), 5), "unit": "share of the budget"},
        {"metric": "budget_used", "value": round(float(np.mean([1 + v for v in over])), 5), "unit": "share of the budget"},
    ]
    for row in rows:
        common = {"baseline": None, "baseline_value": None, "ratio": None, "spread": None}
        out.write({"case": args.space, **row, **common})


if __name__ == "__main__":
    main()
