"""How much of the Pareto front of accuracy and latency does each side find within a number of queries?

    python -m benchmarks.search_hypervolume --accuracy TABLE.npz --metric COLUMN --latency LATENCY.npz [--queries 200] ...

The hypervolume that the queried networks dominate, below the slowest and above the least accurate network of the table, as a
share of what the whole table dominates. Latency is known, an accuracy costs a query. All sides meet the same cases in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.output import Output, add_save
from benchmarks.peers import PEERS, ExhaustedError, Queries
from hwnas.latency.processor import processor
from hwnas.search.budget import LATENCY, Budget
from hwnas.search.pareto import hypervolume
from hwnas.search.strategy import make_strategy
from hwnas.search.tabular import Table
from hwnas.space import Genotype

SIDES = ("auto(front='latency_ms')", "nsga2", "random", "pymoo-nsga2", "optuna-nsga2", "optuna-tpe")


def share(table: Table, device: str, metric: str, side: str, queries: int, seed: int) -> tuple[float, float]:
    """The share of the hypervolume that a side finds, and its seconds."""
    latency, accuracy = table.latency_ms[device], table.column(metric)
    admission = table.admission(Budget({LATENCY: float(latency.max())}), device)
    counter = Queries(table, admission, metric, device, queries)

    def objectives(codes: Genotype) -> list[float]:
        return [float(latency[table.row[counter.row(codes)]])]

    start = time.process_time()
    try:
        if side in PEERS:
            PEERS[side](counter, seed, objectives)
        else:
            strategy = make_strategy(side, admission, seed)
            while True:
                for trial in strategy.ask():
                    strategy.tell(trial, counter.score(trial))
    except ExhaustedError:
        pass
    seconds = time.process_time() - start
    points = np.stack([latency, -accuracy], 1)
    reference = points.max(0)
    found = [row for _, row, _ in counter.answers]
    return hypervolume(points[found], reference) / hypervolume(points, reference), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", required=True, help="npz with codes and columns of accuracy")
    parser.add_argument("--metric", required=True, help="the column that is queried")
    parser.add_argument("--latency", required=True, help="npz with devices and latency_ms")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--devices", type=int, help="so many of the devices, evenly spread; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", default=list(SIDES), help="strategies and peers")
    add_save(parser)
    args = parser.parse_args()
    threadpool_limits(1)  # one core a search
    table = Table(args.accuracy, args.latency)
    devices = list(table.latency_ms)
    if args.devices:
        devices = [devices[i] for i in np.linspace(0, len(devices) - 1, args.devices).round().astype(int)]
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in args.strategies}
    for seed in range(args.seeds):
        for number, device in enumerate(devices):
            for side in args.strategies:
                found[side].append(share(table, device, args.metric, side, args.queries, 1009 * seed + number))
    baseline = next(s for s in ("pymoo-nsga2", *args.strategies) if s in args.strategies)
    missing = {side: statistics.fmean(1 - value for value, _ in values) for side, values in found.items()}
    out = Output("search_hypervolume", args.save, device=processor())
    for side, values in sorted(found.items(), key=lambda item: missing[item[0]]):
        row = {
            "case": f"{Path(args.accuracy).stem} {args.metric} {args.queries} queries {side}", "metric": "missing_hypervolume",
            "value": round(missing[side], 5), "unit": "share of the whole table's", "baseline": baseline,
            "baseline_value": round(missing[baseline], 5), "ratio": round(missing[baseline] / max(missing[side], 1e-9), 3),
            "spread": round(statistics.stdev(v for v, _ in values) / len(values) ** 0.5 if len(values) > 1 else 0.0, 5),
            "seconds": round(statistics.fmean(s for _, s in values), 3), "searches": len(values), "devices": len(devices),
            "seeds": args.seeds,
        }  # fmt: skip
        out.write(row)


if __name__ == "__main__":
    main()
