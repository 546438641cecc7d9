"""How far off are latency predictors on networks that they never saw, beside how far the same networks are off themselves?

    python -m benchmarks.latency_predictor --space mobilenet|nasbench201 [--device cpu] [--minutes 30] [--networks 60] [--save]

Two resolutions of the space share one profile and one model. First the profile: every placed op, and --networks whole networks
of each resolution, for --minutes at most. Then 100 fresh networks, 50 of each resolution, which take part in nothing but the
judgement: visited twice or more, and the distance of their two turns is the retest error. Each predictor is a case, and so are
the sum of the isolated ops and that sum scaled; the baseline of `mape` is the retest error, of the others the scaled sum. An
interrupted run continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import Output, add_save
from hwnas.ir.arch import Arch
from hwnas.latency.device import load_device
from hwnas.latency.predictor import (
    LatencyPredictor,
    LatencyTable,
    Networks,
    PredictorError,
    best_predictor,
    prediction_error,
)  # fmt: skip
from hwnas.latency.processor import processor
from hwnas.latency.profile import Profile, calibration_archs
from hwnas.latency.sweep import profile_space
from hwnas.lower.features import features
from hwnas.regress.linear import fit_nonnegative
from hwnas.space import Space
from hwnas.spaces import make_space

SPACES = {
    "mobilenet": ("mobilenet(input=(3,96,96),classes=100)", "mobilenet(input=(3,160,160),classes=100)"),
    "nasbench201": ("nasbench201(input=(3,32,32))", "nasbench201(input=(3,48,48))"),
}
HELD_OUT = 50  # of each resolution
METRICS = ("mape", "within_5_percent", "within_10_percent", "spearman", "coverage")


def split(profile: Profile, spaces: list[Space], fitted: int) -> tuple[Networks, Networks]:
    """The networks to fit to, and those to judge with, which are the last of each space."""
    keys = {arch.key for space in spaces for arch in calibration_archs(space, fitted)}
    everything = Networks.of(profile, spaces)
    mine = [i for i, arch in enumerate(everything.archs) if arch.key in keys]
    fresh = [i for i, arch in enumerate(everything.archs) if arch.key not in keys]
    return everything.take(mine), everything.take(fresh)


def retest(profile: Profile, networks: Networks) -> float:
    levels = profile.levels("network")
    return float(np.mean([again for arch in networks.archs if (again := levels.retest(arch)) is not None]))


def table_sums(table: LatencyTable, archs: list[Arch]) -> NDArray[np.float64]:
    return np.array([sum(n * table.ops[op] for op, n in features(arch).ops.items()) for arch in archs])


def judgements(
    table: LatencyTable, networks: Networks, held_out: Networks, again: float
) -> Iterator[tuple[str, PredictorError]]:
    mine, theirs = table_sums(table, networks.archs), table_sums(table, held_out.archs)
    yield "sum of ops", prediction_error(table.call_ms + theirs, held_out.latency_ms, again)
    scale, fixed = fit_nonnegative(np.stack([mine, np.ones(len(mine))], 1), networks.latency_ms)
    yield "scaled sum of blocks", prediction_error(scale * theirs + fixed, held_out.latency_ms, again)
    predictors: dict[str, LatencyPredictor] = best_predictor(table, networks)
    for rank, (name, predictor) in enumerate(predictors.items()):
        yield f"{name} (chosen)" if rank == 0 else name, predictor.judge(held_out, again)


def told(phase: str, done: int, total: int) -> None:
    print(f"{phase}: {done} of {total}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--profile", type=Path, help="folder; default runs/latency_predictor/<space>-<device>")
    add_save(parser)
    arguments = parser.parse_args()
    device = load_device(arguments.device)
    spaces = [make_space(text) for text in SPACES[arguments.space]]
    folder = arguments.profile or Path("runs/latency_predictor") / f"{arguments.space}-{device.name}"
    profile = Profile.open(folder / "profile.jsonl", device)
    begin = time.monotonic()
    profile_space(profile, device, spaces, networks=arguments.networks, minutes=arguments.minutes, progress=told)
    took = (time.monotonic() - begin) / 60
    profile_space(profile, device, spaces, networks=arguments.networks + HELD_OUT, progress=told)
    networks, held_out = split(profile, spaces, arguments.networks)
    again = retest(profile, held_out)
    found = dict(judgements(LatencyTable.of(profile), networks, held_out, again))
    stamp: dict[str, Any] = {
        "retest": round(again, 5), "networks": len(networks.archs), "held_out": len(held_out.archs),
        "profile_minutes": round(took, 1),
    }  # fmt: skip
    name = f"{processor()}, {device.name}"
    out = Output("latency_predictor", arguments.save, f"latency_predictor_{device.name}", device=name, **stamp)
    for case, error in found.items():
        for metric in METRICS:
            value = getattr(error, metric)
            if value is None:
                continue
            scaled = getattr(found["scaled sum of blocks"], metric)
            baseline = ("retest", again) if metric == "mape" else ("scaled sum of blocks", scaled)
            row = {
                "case": f"{arguments.space} {case}", "metric": metric,
                "value": round(value, 5), "unit": "rank correlation" if metric == "spearman" else "share",
                "baseline": baseline[0], "baseline_value": baseline[1] and round(baseline[1], 5),
                "ratio": round(value / baseline[1], 4) if baseline[1] else None, "spread": None,
            }  # fmt: skip
            out.write(row)


if __name__ == "__main__":
    main()
