"""The number of multiply-accumulates: the other baseline."""

from __future__ import annotations

from hwnas.evaluation.passes import Passes
from hwnas.lower.cost import cost


def proxy(passes: Passes) -> float:
    return float(cost(passes.arch).macs)
