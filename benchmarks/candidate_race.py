"""How often does racing lose the winner, and what work does it save?

    python -m benchmarks.candidate_race [--seeds 50] [--epochs 6] [--save]

A supernet of a small mobilenet space is trained briefly on the handwritten digits; 256 random candidates are scored on the
whole validation split once. Then batches of 32 of them race, in an order of the images that the seed draws, and the winner is
compared with that of the whole split: a race errs if none of the candidates of the highest accuracy finishes. `saved` is the
share of the validation images that candidates did not look at.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.output import Output, add_save, device_name
from hwnas.data import load_data
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import to_torch
from hwnas.spaces import make_space
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import recalibrate, tensors
from hwnas.supernet.race import Race, Right
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import Recipe, Sampler, train_supernet

SPACE = "mobilenet(stages=((16,2,2),(24,2,2)), stem=8, first=8, head=32)"
BATCH = 32


def answers(candidates: int, epochs: int) -> Right:
    """Which validation images each candidate gets right, [candidates, images]."""
    data = load_data("digits", size=16)
    space = make_space(SPACE, input=data.input, classes=len(data.classes))
    supernet, rng = Supernet(space), random.Random(0)
    sampler = Sampler("uniform", space.sample(rng), space.sample(rng))
    train_supernet(supernet, data.search, data.augmentation, Recipe(epochs=epochs), sampler, seed=0)
    images, labels = tensors(data.search.validation)
    right = []
    for _ in range(candidates):
        genotype = space.sample(rng)
        network = to_torch(simplify(space.decode(genotype)), derive(supernet, genotype))
        recalibrate(network, data.search.train)
        with torch.inference_mode():
            right.append((network(images).argmax(1) == labels).numpy())
    return np.stack(right)


def race(right: Right, error: float) -> tuple[list[int], int]:
    """Who finishes, and how many images were looked at."""
    looked = 0

    def answer(which: NDArray[np.int64], start: int, end: int) -> Right:
        nonlocal looked
        looked += len(which) * (end - start)
        return right[which, start:end]

    alive, _ = Race(error).run(answer, len(right), right.shape[1], len(right))
    return alive.tolist(), looked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=6)
    add_save(parser)
    args = parser.parse_args()
    right = answers(256, args.epochs)
    out = Output("candidate_race", args.save, device=device_name("cpu"), torch=torch.__version__)
    for error in (0.01, 0.05, 0.2):
        lost, looked = 0, 0
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            batch = right[rng.choice(len(right), BATCH, replace=False)][:, rng.permutation(right.shape[1])]
            alive, seen = race(batch, error)
            accuracy = batch.sum(1)
            lost, looked = lost + (accuracy[alive].max(initial=0) < accuracy.max()), looked + seen
        case = f"{args.seeds} batches of {BATCH}, {right.shape[1]} images, accuracy {right.mean():.3f}, stated {error}"
        saved = 1 - looked / (args.seeds * BATCH * right.shape[1])
        for metric, value, baseline in (("winner_lost", lost / args.seeds, error), ("saved", saved, None)):
            row = {
                "case": case, "metric": metric, "value": round(float(value), 4), "unit": "share",
                "baseline": "stated" if baseline else "", "baseline_value": baseline, "ratio": None, "spread": 0.0,
            }  # fmt: skip
            out.write(row)


if __name__ == "__main__":
    main()
