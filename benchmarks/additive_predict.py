"""How many architectures a second does the additive predictor score, against numpy?

    python -m benchmarks.additive_predict [--archs 1000000] [--layers 20] [--choices 12] [--rounds 15] [--save]

Both sides read the same genotypes, a byte a layer, and are checked against each other first. They run in turn, round after
round; a figure is the median over the rounds, `spread` the distance between the quartiles. The baseline is the faster of
numpy's two usual forms: one fancy index, and a sum over layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import Output, add_save
from hwnas.kernels.additive import score, score_reference
from hwnas.latency.processor import processor

Scores = NDArray[np.float32]


def fancy(table: Scores, genotypes: NDArray[np.uint8]) -> Scores:
    result: Scores = table[np.arange(len(table)), genotypes].sum(1)
    return result


def by_layer(table: Scores, genotypes: NDArray[np.uint8]) -> Scores:
    total = np.zeros(len(genotypes), np.float32)
    for layer, row in enumerate(table):
        total += row[genotypes[:, layer]]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--choices", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    add_save(parser)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    table = rng.random((args.layers, args.choices), np.float32)
    genotypes = rng.integers(0, args.choices, (args.archs, args.layers), dtype=np.uint8)
    sides: dict[str, Callable[[], Scores]] = {
        "native": lambda: score(table, genotypes),
        "native, 1 thread": lambda: score(table, genotypes, threads=1),
        "numpy fancy index": lambda: fancy(table, genotypes),
        "numpy by layer": lambda: by_layer(table, genotypes),
    }
    expected = score_reference(table, genotypes)
    for name, side in sides.items():  # and warms up
        error = float(np.abs(side() - expected).max())
        if error > args.layers * np.finfo(np.float32).eps * args.layers:
            raise SystemExit(f"{name} errs by {error:.2e}: not timed")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            rates[name].append(args.archs / (time.perf_counter() - start) / 1e6)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    numpy_name = max((n for n in sides if n.startswith("numpy")), key=medians.__getitem__)
    out = Output("additive_predict", args.save, device=processor())
    for name, values in rates.items():
        low, _, high = statistics.quantiles(values, n=4)
        row: dict[str, Any] = {
            "case": f"{args.archs} archs, {args.layers} layers of {args.choices}, {name}",
            "metric": "rate", "value": round(medians[name], 1), "unit": "million archs a second", "baseline": numpy_name,
            "baseline_value": round(medians[numpy_name], 1), "ratio": round(medians[name] / medians[numpy_name], 1),
            "spread": round(high - low, 1), "best": round(max(values), 1),
        }  # fmt: skip
        out.write(row)


if __name__ == "__main__":
    main()
