"""Latency linear in multiply-accumulates, to compare with."""

from __future__ import annotations

from hwnas.ir.op import PlacedOp
from hwnas.latency.additive import ProportionalModel
from hwnas.lower.cost import op_macs_params


class Model(ProportionalModel):
    @staticmethod
    def size(placed: PlacedOp) -> int:
        return op_macs_params(placed)[0]
