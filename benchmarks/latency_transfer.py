"""How well is a new device's latency known from 5, 10 or 20 of its measurements, given other devices?

    python -m benchmarks.latency_transfer --latency nb201_latency.npz [--codes nb201_accuracy.npz] [--seeds 20] [--save]

The file holds `devices` [d], `latency_ms` [d, n] and `codes` [n, choices]; where it has no codes, they are read from --codes,
by default nb201_accuracy.npz beside it. Each device in turn is new, the others are known by the same 900 random networks.
The rows are means over devices; `spread` is the standard error over the seeds. Networks that were measured on the new device
are not judged, and of NAS-Bench-201 the disconnected cells are judged apart.

`hwnas` chooses which networks to measure, among the 900. The baselines see the same: `ridge` is a linear ridge (its strength by
leave-one-out) on the known devices' predicted log-latencies, from random networks as is usual and (`ridge-chosen`) from ours;
`ridge-all` has the networks' one-hot features beside them; `hwnas-random` is ours from the ridge's networks.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV

from benchmarks.output import Output, add_save
from hwnas.ir.simplify import simplify
from hwnas.latency.processor import processor
from hwnas.regress.transfer import Family, complete
from hwnas.spaces.nasbench201 import EDGES, OPS, space

Array = NDArray[np.float64]

COUNTS = (5, 10, 20)
KNOWN = 900
STRENGTHS = np.logspace(-2, 4, 13)
Z90 = statistics.NormalDist().inv_cdf(0.95)


def load(path: Path, codes_path: Path | None) -> tuple[list[str], Array, NDArray[np.int64]]:
    with np.load(path, allow_pickle=False) as file:
        devices, latency = [str(d) for d in file["devices"]], file["latency_ms"].astype(np.float64)
        codes = file["codes"] if "codes" in file.files else None
    if codes is None:
        with np.load(codes_path or path.with_name("nb201_accuracy.npz"), allow_pickle=False) as file:
            codes = file["codes"]
    return devices, latency, codes.astype(np.int64)


def is_cell(codes: NDArray[np.int64]) -> bool:
    return codes.shape[1] == len(EDGES) and int(codes.max()) < len(OPS)


def one_hot(codes: NDArray[np.int64]) -> Array:
    """Every choice's option, and how often each option occurs."""
    flat = np.eye(int(codes.max()) + 1)[codes]
    return np.hstack([flat.reshape(len(codes), -1), flat.sum(1)])


def simplified_cells(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes in which an edge that the simplified cell does not have is `none`; a skip is kept where its source is read."""
    cells = space(cells=1)
    result = np.zeros_like(codes)
    for row, code in zip(result, codes, strict=True):
        alive = {node.name for node in simplify(cells.decode(code.tolist())).nodes}
        reach = {0}
        for target in (1, 2, 3):
            if any(b == target and a in reach and code[e] for e, (a, b) in enumerate(EDGES)):
                reach.add(target)
        wanted = {3}
        for source in (2, 1, 0):
            if any(a == source and b in wanted and code[e] for e, (a, b) in enumerate(EDGES)):
                wanted.add(source)
        for e, (a, b) in enumerate(EDGES):
            skip = OPS[code[e]] == "skip_connect" and a in reach and b in wanted
            row[e] = code[e] if skip or (f"stage0.cell0.e{a}_{b}" in alive and a in reach) else 0
    return result


def features(codes: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
    """Of the networks as they are written, which is what eager runtimes run, and, for cells, as compilers simplify them too.

    Also which networks are connected.
    """
    x, connected = one_hot(codes), np.ones(len(codes), bool)
    if is_cell(codes):
        simple = simplified_cells(codes)
        x = np.hstack([x, one_hot(simple)])
        connected = simple.any(1)
    return x[:, x.std(0) > 0], connected


def ridge(x: Array, index: NDArray[np.intp], y: Array) -> Array:
    return np.asarray(RidgeCV(STRENGTHS).fit(x[index], y).predict(x))


def judge(predicted: Array, measured: Array) -> dict[str, float]:
    ranks = np.corrcoef(rankdata(predicted), rankdata(measured))[0, 1] if np.ptp(predicted) and np.ptp(measured) else 0.0
    return {"spearman": float(ranks), "within_10_percent": float((np.abs(np.exp(predicted - measured) - 1) <= 0.1).mean())}


def one_seed(seed: int, x: Array, log_ms: Array, connected: NDArray[np.bool_]) -> dict[tuple[str, int, str], list[float]]:
    """(method, samples, metric) -> a value for each device."""
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(connected))[:KNOWN]
    curves = complete(x, [(pool, y[pool]) for y in log_ms])
    asked = rng.permutation(np.flatnonzero(connected))[:KNOWN]  # whose intervals are judged
    unit = x / np.maximum(x.std(0), 1e-12)
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for new, y in enumerate(log_ms):
        known = np.delete(curves, new, 0)
        family = Family(known, x)
        centred = known - known.mean(1, keepdims=True)
        by_device = (centred / centred.std()).T
        by_all = np.hstack([by_device, unit / np.sqrt(unit.shape[1])])
        chosen = family.choose(max(COUNTS), pool)
        for count in COUNTS:
            ours, drawn = chosen[:count], rng.choice(pool, count, replace=False)
            inferred = family.infer(ours, y[ours], asked)
            guesses = {
                "hwnas": (ours, inferred.at(known, x)),
                "hwnas-random": (drawn, family.infer(drawn, y[drawn]).at(known, x)),
                "ridge": (drawn, ridge(by_device, drawn, y[drawn])),
                "ridge-chosen": (ours, ridge(by_device, ours, y[ours])),
                "ridge-all": (drawn, ridge(by_all, drawn, y[drawn])),
            }
            for method, (measured, guess) in guesses.items():
                rest = connected.copy()
                rest[measured] = False
                values = judge(guess[rest], y[rest])
                if not connected.all():
                    values |= {f"{k}_disconnected": v for k, v in judge(guess[~connected], y[~connected]).items()}
                if method == "hwnas":
                    values["coverage"] = float((np.abs(guess - y)[asked] <= Z90 * inferred.deviation).mean())
                for metric, value in values.items():
                    found[method, count, metric].append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=Path, required=True)
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    add_save(parser)
    arguments = parser.parse_args()
    devices, latency, codes = load(arguments.latency, arguments.codes)
    x, connected = features(codes)
    by_seed = [one_seed(seed, x, np.log(latency), connected) for seed in range(arguments.seeds)]
    means = {key: [statistics.fmean(found[key]) for found in by_seed] for key in by_seed[0]}
    out = Output("latency_transfer", arguments.save, device=processor())
    for (method, count, metric), values in sorted(means.items(), key=lambda item: (item[0][2], item[0][1], item[0][0])):
        value, base = statistics.fmean(values), means.get(("ridge", count, metric))
        base_value = statistics.fmean(base) if base else None
        row: dict[str, Any] = {
            "case": f"{arguments.latency.stem} {method} {count} samples", "metric": metric,
            "value": round(value, 4), "unit": "share" if metric != "spearman" else "rank correlation",
            "baseline": "ridge" if base else None, "baseline_value": base_value and round(base_value, 4),
            "ratio": round(value / base_value, 4) if base_value else None,
            "spread": round(statistics.stdev(values) / len(values) ** 0.5, 5) if len(values) > 1 else None,
            "devices": len(devices), "seeds": len(values),
        }  # fmt: skip
        out.write(row)


if __name__ == "__main__":
    main()
