"""How well do zero-cost proxies rank the cells of NAS-Bench-201, against the table's trained accuracy?

    python -m benchmarks.proxy_rank --data cifar10_jpeg_train.npz --accuracy nb201_accuracy.npz [--count 100] [--save]

Spearman's rank correlation over random cells, with a bootstrap interval of 90 % as `spread`; the baseline is the number of
parameters. `seconds` is the mean of all proxies together for a cell: they share their passes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.output import Output, add_save, device_name
from hwnas.data import load_data
from hwnas.evaluation.evaluator import Setting, make_evaluator
from hwnas.plugins import known
from hwnas.spaces import make_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images in any form that hwnas reads")
    parser.add_argument("--accuracy", type=Path, required=True)
    parser.add_argument("--metric", default="c10_test_e200")
    parser.add_argument("--count", type=int, default=100, help="cells")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_save(parser)
    args = parser.parse_args()

    with np.load(args.accuracy, allow_pickle=False) as file:
        codes, accuracy = file["codes"], file[args.metric]
    rng = np.random.default_rng(args.seed)
    rows = rng.choice(len(codes), args.count, replace=False)
    dataset = load_data(args.data, seed=args.seed, limit=4 * args.batch_size, test_limit=10)
    space = make_space("nasbench201", input=dataset.input, channels=args.channels, cells=args.cells)
    names = ["params", *(n for n in known("hwnas.evaluation.proxies") if n != "params")]
    setting = Setting(space, dataset.search, dataset.augmentation, args.seed)
    evaluator = make_evaluator(f"zero_cost(proxies={names},batch_size={args.batch_size})", setting)
    start = time.perf_counter()
    scores = [evaluator.evaluate(tuple(int(v) for v in codes[i])) for i in rows]
    seconds = (time.perf_counter() - start) / args.count
    out = Output("proxy_rank", args.save, device=device_name("cpu"), seconds=round(seconds, 3))
    resamples = rng.integers(0, args.count, (500, args.count))

    def correlation(name: str, picked: np.ndarray) -> float:
        return float(spearmanr([scores[i][name] for i in picked], accuracy[rows[picked]]).statistic)

    baseline = correlation("params", np.arange(args.count))
    for name in names:
        value = correlation(name, np.arange(args.count))
        low, high = np.quantile([correlation(name, picked) for picked in resamples], (0.05, 0.95))
        row = {
            "case": f"{args.count} cells, {args.channels} channels, {args.metric}", "metric": name,
            "value": round(value, 3), "unit": "Spearman", "baseline": "params", "baseline_value": round(baseline, 3),
            "ratio": round(value / baseline, 3), "spread": round(float(high - low), 3),
        }  # fmt: skip
        out.write(row)


if __name__ == "__main__":
    main()
