"""Draws a demo's comparison: measured latency against test accuracy, the winner and the networks scaled by hand.

python examples/plot_comparison.py runs/demo/comparison.json picture.png      (needs matplotlib: pip install hwnas[plot])
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(source: Path, target: Path) -> None:
    values = json.loads(source.read_text())
    rows = values["rows"]
    scaled = [r for r in rows if r["network"] != "winner"]
    (winner,) = [r for r in rows if r["network"] == "winner"]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.plot(
        [r["latency_ms"] for r in scaled], [100 * r["accuracy"] for r in scaled], "o-", color="0.55", label="scaled by hand"
    )
    for row in scaled:
        axes.annotate(
            row["network"], (row["latency_ms"], 100 * row["accuracy"]), (4, -12), textcoords="offset points", fontsize=8
        )
    axes.plot(winner["latency_ms"], 100 * winner["accuracy"], "*", markersize=15, color="tab:red", label="found by hwnas")
    if values.get("budget_ms") is not None:
        axes.axvline(values["budget_ms"], linestyle="--", color="tab:blue", linewidth=1, label="budget")
    axes.set(xlabel="measured latency, ms", ylabel="test accuracy, %", title=values.get("title", ""))
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(target, dpi=140)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
