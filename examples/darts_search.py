"""First-order DARTS on CIFAR-10: wall time and loss per epoch, and the cell that it derives.

python examples/darts_search.py --data path/to/cifar10.npz --device cuda --minutes 10
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch

from hwnas.data import load_data
from hwnas.spaces import make_space
from hwnas.storage import write_file
from hwnas.supernet.differentiable import GradientRecipe, search_differentiable
from hwnas.supernet.gradient import Alphas
from hwnas.supernet.supernet import Supernet


class TimeIsOverError(Exception):
    """Ends the search after the epoch in which its minutes ran out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10 in any form that hwnas reads")
    parser.add_argument("--space", default="darts")
    parser.add_argument("--limit", type=int, help="use this many training and validation images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=50, help="length of the schedule")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after the epoch in which this time is over")
    parser.add_argument("--steps", type=int, help="steps an epoch, at most")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--float32", action="store_true", help="float32 activations on a GPU too, instead of bfloat16")
    parser.add_argument("--plain", action="store_true", help="plain PyTorch mixed ops instead of the native cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the curve and the derived architecture")
    arguments = parser.parse_args()

    dataset = load_data(arguments.data, seed=arguments.seed, limit=arguments.limit, validation=0.4)
    space = make_space(arguments.space, input=dataset.input, classes=len(dataset.classes))
    supernet = Supernet(space, arguments.seed, native=not arguments.plain)
    on_gpu = arguments.device.startswith("cuda")
    recipe = GradientRecipe(
        epochs=arguments.epochs, batch_size=arguments.batch_size, steps=arguments.steps,
        bfloat16=on_gpu and not arguments.float32,
    )  # fmt: skip
    start = last = time.perf_counter()
    epochs: list[dict[str, float]] = []
    curve: list[float] = []
    derived: dict[str, str] = {}

    def progress(done: int, total: int, losses: list[float], alphas: Alphas) -> None:
        nonlocal last, derived
        now = time.perf_counter()
        epochs.append({"epoch": done, "seconds": round(now - last, 3), "loss": sum(losses) / len(losses)})
        curve.extend(losses)
        derived = space.describe(alphas.genotype(space))
        print(json.dumps(epochs[-1]), flush=True)
        last = now
        if now - start > 60 * arguments.minutes:
            raise TimeIsOverError

    with contextlib.suppress(TimeIsOverError):
        search_differentiable(
            supernet,
            dataset.search,
            dataset.augmentation,
            recipe,
            seed=arguments.seed,
            device=arguments.device,
            progress=progress,
        )
    kept = {edge: op for edge, op in derived.items() if op != "none"}
    print(json.dumps(kept, indent=2))
    if arguments.out:
        result = {"device": arguments.device, "native": not arguments.plain, "epochs": epochs, "curve": curve, "derived": kept}
        write_file(arguments.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
