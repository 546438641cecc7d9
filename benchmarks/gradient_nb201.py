"""What do the gradient strategies derive on NAS-Bench-201, with and without the latency in their loss?

    python -m benchmarks.gradient_nb201 --data cifar10_jpeg_train.npz --accuracy nb201_accuracy.npz --latency nb201_latency.npz

Every strategy searches the space `nasbench201` on a subset of CIFAR-10, once without latency and once for each device with it.
A line gives the derived cell, its accuracy in the benchmark's table (`ratio`: over that of the table's best), its latency on
the devices, how many of its edges are skip connections, and whether the collapse warning was heard. The expected latency comes
from a table of milliseconds per edge and op, fitted to the latencies of random cells; the reported one is the measured one.
Short runs of a small supernet: they show the machinery, not the strategies' best.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.output import Output, add_save, device_name
from hwnas.data import load_data
from hwnas.spaces import make_space
from hwnas.supernet.differentiable import CollapseWarning, GradientRecipe, search_in_stages
from hwnas.supernet.expected_latency import ExpectedLatency
from hwnas.supernet.gradient import make_gradient
from hwnas.supernet.supernet import Supernet

STRATEGIES = ("darts", "darts(order=2)", "pdarts", "gdas", "proxyless")


def table_of(codes: np.ndarray, latency_ms: np.ndarray, cells: int = 400, seed: int = 0) -> ExpectedLatency:
    """Milliseconds per edge and op, none negative, by least squares over random cells."""
    rows = np.random.default_rng(seed).choice(len(codes), min(cells, len(codes)), replace=False)
    options = int(codes.max()) + 1
    one_hot = np.eye(options)[codes[rows]].reshape(len(rows), -1)
    found, _ = nnls(np.hstack([one_hot, np.ones((len(rows), 1))]), latency_ms[rows])
    return ExpectedLatency.of_choices(found[:-1].reshape(codes.shape[1], options).tolist(), constant_ms=float(found[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 in any form that hwnas reads")
    parser.add_argument("--accuracy", type=Path, required=True)
    parser.add_argument("--metric", default="c10_test_e200")
    parser.add_argument("--latency", type=Path, required=True)
    parser.add_argument("--devices", nargs="*", help="names in the latency file; default the first and the last")
    parser.add_argument("--strategies", nargs="*", default=STRATEGIES)
    parser.add_argument("--weight", type=float, default=0.1, help="of the expected latency in the loss of alpha")
    parser.add_argument("--limit", type=int, default=4000, help="images for training and validation")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30, help="an epoch")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--alpha-learning-rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    add_save(parser)
    args = parser.parse_args()

    with np.load(args.accuracy, allow_pickle=False) as file:
        codes, accuracy = file["codes"], file[args.metric]
    with np.load(args.latency, allow_pickle=False) as file:
        names, latency_ms = file["devices"].tolist(), file["latency_ms"]
    devices = args.devices or [names[0], names[-1]]
    row_of = {tuple(code): i for i, code in enumerate(codes.tolist())}
    dataset = load_data(args.data, seed=args.seed, limit=args.limit, test_limit=10, validation=0.4)
    space = make_space("nasbench201", input=dataset.input, channels=args.channels, cells=args.cells)
    out = Output("gradient_nb201", args.save, "gradient_nb201_cpu", device=device_name("cpu"))
    for text in args.strategies:
        for device in (None, *devices):
            recipe = GradientRecipe(
                epochs=args.epochs, steps=args.steps, batch_size=args.batch_size, alpha_learning_rate=args.alpha_learning_rate,
                latency_weight=args.weight if device else 0.0,
            )  # fmt: skip
            latency = table_of(codes, latency_ms[names.index(device)]) if device else None
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always", CollapseWarning)
                gradient = make_gradient(text, space)
                genotype = search_in_stages(
                    lambda stage: Supernet(space, args.seed), dataset.search, dataset.augmentation, recipe, gradient,
                    seed=args.seed, latency=latency,
                )  # fmt: skip
            seconds = time.perf_counter() - start
            place = row_of[genotype]
            line: dict[str, Any] = {
                "case": f"{text}, {f'latency of {device}' if device else 'without latency'}",
                "metric": args.metric, "value": round(float(accuracy[place]), 3), "unit": "%",
                "baseline": "best cell of the table",
                "baseline_value": round(float(accuracy.max()), 3), "ratio": round(float(accuracy[place] / accuracy.max()), 4),
                "spread": 0.0, "cell": "|".join(space.describe(genotype).values()),
                "latency_ms": {d: round(float(latency_ms[names.index(d), place]), 4) for d in devices},
                "skips": sum(o in s for o, s in zip(genotype, gradient.skip_options, strict=True)),
                "collapse_warned": any(issubclass(w.category, CollapseWarning) for w in heard), "seconds": round(seconds, 1),
                "steps": args.epochs * args.steps,
                "batch_size": args.batch_size,
            }  # fmt: skip
            out.write(line)


if __name__ == "__main__":
    main()
