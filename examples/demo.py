"""The main job end to end, and what it is worth: the winner beside MobileNetV2-style networks scaled by hand to its latency.

The scaled networks have the space's own stages, kernel 3, expansion 6 and full depth, times a width multiplier. They are
trained by the same recipe from the same seed and measured interleaved with the winner.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from hwnas.compile import compile_network
from hwnas.data import Dataset, load_data
from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.latency.device import load_device
from hwnas.latency.measure import Measurement, measure
from hwnas.lower.cost import cost
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.plugins import parse_call
from hwnas.report.progress import Watch, watch
from hwnas.report.run import RunFolder
from hwnas.report.tables import report_lines, table
from hwnas.search.budget import LATENCY, describe
from hwnas.spaces import make_space
from hwnas.storage import write_file
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.train import Recipe, train_network

MULTIPLIERS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.4, 2.0, 2.8, 4.0)
SPACE = "mobilenet(stages=((16,3,2),(24,3,2),(40,3,1)),stem=8,first=8,head=96,widths=(0.5,0.75,1.0))"


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    name: str
    arch: Arch
    measurement: Measurement
    accuracy: float
    macro_f1: float


def scaled_by_hand(space: str, dataset: Dataset) -> dict[float, Arch]:
    """The width multipliers' networks, those that rounding makes equal left out."""
    name, arguments = parse_call(space, "space")
    fixed = {**arguments, "kernels": (3,), "expansions": (6,), "depths": (99,), "widths": (1.0,), "se": False}
    found: dict[str, tuple[float, Arch]] = {}
    for multiplier in MULTIPLIERS:
        width = multiplier * float(arguments.get("width", 1.0))
        scaled = make_space(name, input=dataset.input, classes=len(dataset.classes), **{**fixed, "width": width})
        arch = scaled.decode((0,) * len(scaled.choices))
        found.setdefault(arch.key, (multiplier, arch))
    return dict(found.values())


def bracket(latencies: dict[float, float], target: float) -> list[float]:
    """Three multipliers whose latencies bracket the target: the nearest below, the nearest above, and the next nearest."""
    below = [m for m in latencies if latencies[m] <= target]
    above = [m for m in latencies if latencies[m] > target]
    chosen = ([max(below, key=latencies.__getitem__)] if below else []) + (
        [min(above, key=latencies.__getitem__)] if above else []
    )
    rest = sorted((m for m in latencies if m not in chosen), key=lambda m: abs(latencies[m] - target))
    return sorted(chosen + rest[: 3 - len(chosen)])


def line_at(points: list[tuple[float, float]], latency: float) -> float:
    """Accuracy at a latency on the straight lines through the points, flat beyond their ends."""
    points = sorted(points)
    if latency <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if latency <= x1:
            return y0 + (y1 - y0) * (latency - x0) / (x1 - x0)
    return points[-1][1]


def baselines(arguments: argparse.Namespace, winner: bytes, tell: Watch) -> tuple[Measurement, list[Entry]]:
    """The winner's measurement and the trained baselines, all measured against each other."""
    dataset = load_data(arguments.data, seed=arguments.seed, size=arguments.size, limit=arguments.limit)
    device = load_device(arguments.device)
    archs = scaled_by_hand(arguments.space, dataset)
    models = [to_onnx(arch, init_weights(arch)).SerializeToString() for arch in archs.values()]
    rough = measure([winner, *models], device, seconds=5).models
    latencies = dict(zip(archs, (m.latency_ms for m in rough[1:]), strict=True))
    chosen = bracket(latencies, rough[0].latency_ms)
    trained = []
    for multiplier in chosen:
        network = to_torch(archs[multiplier], seed=arguments.seed)
        phase = f"baseline x{multiplier:g}"
        train_network(
            network, dataset.search, dataset.augmentation, Recipe(epochs=arguments.epochs), seed=arguments.seed,
            progress=lambda done, total, loss, phase=phase: tell(phase, done, total, f"loss {loss:.3f}"),
        )  # fmt: skip
        trained.append(network)
    models = [to_onnx(network.arch, network.weights()).SerializeToString() for network in trained]
    final = measure([winner, *models], device, seconds=10, min_rounds=30).models
    entries = []
    for multiplier, network, found in zip(chosen, trained, final[1:], strict=True):
        test = evaluate(network, dataset.test.split)
        entries.append(Entry(f"MobileNetV2 x{multiplier:g}", network.arch, found, test.accuracy, test.macro_f1))
    return final[0], entries


def main() -> int:
    """0 if the winner keeps the budget, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default=SPACE)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", default="0.05ms")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--supernet-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=Path, help="folder of the device's profile")
    arguments = parser.parse_args()
    console = Console()
    with watch(console) as tell:
        report = compile_network(
            arguments.space, arguments.data, arguments.device, arguments.budget, arguments.out, seed=arguments.seed,
            evaluations=arguments.evaluations, supernet_epochs=arguments.supernet_epochs, epochs=arguments.epochs,
            size=arguments.size, limit=arguments.limit, profile=arguments.profile, resume=True, watch=tell,
        )  # fmt: skip
        folder = RunFolder(arguments.out)
        measured, rows = baselines(arguments, folder.model.read_bytes(), tell)
    winner = Entry("winner", read_arch(folder.arch.read_text()), measured, report.test.accuracy, report.test.macro_f1)
    for text in report_lines(report):
        console.print(text, highlight=False, soft_wrap=True)
    entries = sorted([winner, *rows], key=lambda e: e.measurement.latency_ms)
    console.print(
        table(
            f"{arguments.data}: measured on {arguments.device}, trained by one recipe",
            ("network", "latency ms", "median", "accuracy", "macro F1", "MACs", "params"),
            [
                (
                    e.name, f"{e.measurement.latency_ms:.4f}", f"{e.measurement.median_ms:.4f}", f"{e.accuracy:.2%}",
                    f"{e.macro_f1:.4f}", describe("macs", cost(e.arch).macs), describe("params", cost(e.arch).params),
                )
                for e in entries
            ],
        )
    )  # fmt: skip
    expected = line_at([(e.measurement.latency_ms, e.accuracy) for e in rows], measured.latency_ms)
    ahead = 100 * (report.test.accuracy - expected)
    console.print(f"winner against the line through the scaled networks: {ahead:+.2f} points of accuracy", highlight=False)
    values = [
        {
            "network": e.name, "latency_ms": e.measurement.latency_ms, "median_ms": e.measurement.median_ms,
            "accuracy": e.accuracy, "macro_f1": e.macro_f1, "macs": cost(e.arch).macs, "params": cost(e.arch).params,
        }
        for e in entries
    ]  # fmt: skip
    comparison = {
        "title": f"{Path(arguments.data).stem} on {arguments.device}",
        "budget_ms": report.config.budget.get(LATENCY),
        "points_over_line": ahead,
        "rows": values,
    }
    write_file(arguments.out / "comparison.json", json.dumps(comparison, indent=2) + "\n")
    seconds = ", ".join(f"{phase} {value:.0f} s" for phase, value in report.seconds.items())
    console.print(f"wall time: {seconds}\nmodel: {folder.model}", highlight=False)
    return 0 if report.succeeded else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
