"""How close to the best network of a table does each strategy come, and each peer, within a number of queries?

    python -m benchmarks.search_tabular --accuracy TABLE.npz --metric COLUMN [--latency LATENCY.npz] [--queries 100] ...

Every device and quantile of its latency is a case: among the networks that keep that latency, find the most accurate. Latency,
parameters and multiply-accumulates are known, an accuracy costs a query. Without a latency file the budgets are quantiles of
the multiply-accumulates, or of the parameters. Regret: points of accuracy between the best network within the budget and the
one whose queried accuracy was best; `--report` takes both from another column than the one that is queried. All sides meet the
same cases in turn. Peers pay a query only for networks that keep the budget and that they did not ask for before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.output import Output, add_save
from benchmarks.peers import PEERS, ExhaustedError, Queries
from hwnas.latency.processor import processor
from hwnas.plugins import known
from hwnas.search.budget import LATENCY, Budget
from hwnas.search.strategy import make_strategy
from hwnas.search.tabular import Table

QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Case:
    device: str | None
    metric: str  # that is limited
    quantile: float
    seed: int

    @property
    def rng_seed(self) -> int:
        """A seed of its own for every case, so that cases do not share their random starts."""
        return self.seed * 1009 + int(1000 * self.quantile) + sum(map(ord, self.device or ""))


@dataclass(frozen=True)
class Outcome:
    side: str
    case: Case
    regret: list[float]  # points, after each number of queries
    found: list[bool]
    seconds: float


def play(table: Table, args: argparse.Namespace, side: str, case: Case) -> Outcome:
    """One search of one side."""
    limit = float(np.quantile(table.known(case.device)[case.metric], case.quantile))
    admission = table.admission(Budget({case.metric: limit}), case.device)
    start = time.process_time()
    queries = Queries(table, admission, args.metric, case.device, max(args.queries))
    try:
        if side in PEERS:
            PEERS[side](queries, case.rng_seed)
        else:
            strategy = make_strategy(side, admission, case.rng_seed)
            while True:
                for trial in strategy.ask(args.batch):
                    strategy.tell(trial, queries.score(trial))
    except ExhaustedError:
        pass
    seconds = time.process_time() - start
    truth = table.column(args.report or args.metric)
    within = table.known(case.device)[case.metric] <= limit
    best = float(truth[within].max())
    chosen = [queries.chosen(count) for count in args.queries]
    regret = [100 * (best - float(truth[row])) for row in chosen]
    return Outcome(side, case, regret, [r < 1e-6 for r in regret], seconds)


_shared: tuple[Table, argparse.Namespace]


def _open(args: argparse.Namespace) -> None:
    global _shared
    threadpool_limits(1)
    _shared = Table(args.accuracy, args.latency), args


def _play(job: tuple[str, Case]) -> Outcome:
    return play(*_shared, *job)


def outcomes(args: argparse.Namespace, jobs: Iterable[tuple[str, Case]]) -> Iterator[Outcome]:
    if args.jobs == 1:
        _open(args)
        yield from map(_play, jobs)
    else:
        with ProcessPoolExecutor(args.jobs, initializer=_open, initargs=(args,)) as pool:
            yield from pool.map(_play, jobs)


def rows(args: argparse.Namespace, found: list[Outcome], baseline: str) -> Iterator[dict[str, Any]]:
    """The table: each side over all cases. `ratio` is the baseline's mean regret over the side's."""
    sides = list(dict.fromkeys(o.side for o in found))
    for at, queries in enumerate(args.queries):
        mean = {s: statistics.fmean(o.regret[at] for o in found if o.side == s) for s in sides}
        for side in sorted(sides, key=mean.__getitem__):
            own = [o for o in found if o.side == side]
            regrets = [o.regret[at] for o in own]
            cases = f"{Path(args.accuracy).stem} {args.metric}{' for ' + args.report if args.report else ''} {queries} queries"
            cases += f" batch {args.batch}" if args.batch > 1 else ""
            yield {
                "case": f"{cases} {side}", "metric": "mean_regret",
                "value": round(mean[side], 4), "unit": "points of accuracy", "baseline": baseline,
                "baseline_value": round(mean[baseline], 4), "ratio": round(mean[baseline] / max(mean[side], 1e-9), 3),
                "spread": round(statistics.stdev(regrets) / len(regrets) ** 0.5 if len(regrets) > 1 else 0.0, 4),
                "p95_regret": round(float(np.quantile(regrets, 0.95)), 4),
                "optimum_found": round(statistics.fmean(o.found[at] for o in own), 4),
                "seconds": round(statistics.fmean(o.seconds for o in own), 3), "searches": len(own),
                "devices": len({o.case.device for o in own}), "seeds": len({o.case.seed for o in own}),
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", required=True, help="npz with codes and columns of accuracy")
    parser.add_argument("--metric", required=True, help="the column that is queried")
    parser.add_argument("--report", help="the column in which the answer is judged, if another")
    parser.add_argument("--latency", help="npz with devices and latency_ms")
    parser.add_argument("--budget-metric", help="what is limited where there is no latency: macs or params")
    parser.add_argument("--queries", type=int, nargs="+", default=[100])
    parser.add_argument("--batch", type=int, default=1, help="trials that strategies are asked for at once")
    parser.add_argument("--devices", nargs="+", help="some of the devices by name, or a number: so many, evenly spread")
    parser.add_argument("--quantiles", type=float, nargs="+", default=list(QUANTILES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", help="strategies and peers; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    add_save(parser)
    args = parser.parse_args()
    threadpool_limits(1)  # one core a search
    args.queries.sort()
    if args.batch < 1:
        parser.error(f"--batch is at least 1; got {args.batch}")
    table = Table(args.accuracy, args.latency)
    devices: list[str | None] = list(table.latency_ms) or [None]
    if args.devices and args.devices[0].isdigit():
        devices = [devices[i] for i in np.linspace(0, len(devices) - 1, int(args.devices[0])).round().astype(int)]
    elif args.devices:
        devices = list(args.devices)
    metric = LATENCY if devices != [None] else args.budget_metric or next(m for m in ("macs", "params") if m in table.metrics)
    sides = args.strategies or [*known("hwnas.search.strategies"), *PEERS]
    cases = [Case(d, metric, q, s) for s in range(args.seeds) for d in devices for q in args.quantiles]
    jobs = [(side, case) for case in cases for side in sides]
    found = []
    for outcome in outcomes(args, jobs):
        found.append(outcome)
        if sys.stderr.isatty():
            print(f"\r{len(found)}/{len(jobs)} searches", end="", file=sys.stderr)
    baseline = next(s for s in ("random", *sides) if s in sides)
    out = Output("search_tabular", args.save, device=processor())
    for row in rows(args, found, baseline):
        out.write(row)


if __name__ == "__main__":
    main()
