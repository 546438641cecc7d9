"""Latency linear in multiply-accumulates: what one gets without a profile of the ops, to compare with."""

from __future__ import annotations

from hwnas.ir.arch import Arch
from hwnas.latency.predictor import LatencyPredictor
from hwnas.lower.cost import cost


class Predictor(LatencyPredictor):
    def _features(self, arch: Arch) -> list[float]:
        return [cost(arch).macs / 1e6, 1.0]
