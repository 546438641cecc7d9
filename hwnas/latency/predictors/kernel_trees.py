"""Op latencies by boosted trees over what describes an op (nn-Meter, Zhang et al. 2021, section 6), calibrated on networks.

It prices ops that were never profiled, as long as they resemble some that were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.latency.additive import AdditiveModel, Calibration, table_of
from hwnas.latency.predictor import LatencyTable
from hwnas.lower.cost import op_macs_params
from hwnas.lower.features import describe_op, features, fused_nodes
from hwnas.regress.boosted_trees import BoostedTrees, grow_trees

LEAST_MS = 1e-6  # an op that takes no time has no logarithm


class Model(AdditiveModel):
    """`factors`: of the trees' ms, of weight megabytes and of fused nodes."""

    def __init__(self, trees: BoostedTrees, factors: Sequence[float], fixed_ms: float) -> None:
        self.trees, self.factors, self.fixed_ms = trees, [float(f) for f in factors], float(fixed_ms)
        self._own: dict[PlacedOp, float] = {}

    @classmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: NDArray[np.float64]) -> Model:
        trees = _grown(table)
        found = cls(trees, (1.0, 0.0, 0.0), 0.0)
        found._price(op for arch in archs for op in features(arch).ops)
        calibration = Calibration(found._own, archs, latency_ms)
        return cls(trees, calibration.factors[:3].tolist(), calibration.fixed_ms)

    def op_ms(self, placed: PlacedOp) -> float:
        own, weights, nodes = self.factors
        self._price([placed])
        return own * self._own[placed] + weights * 4e-6 * op_macs_params(placed)[1] + nodes * fused_nodes(placed)

    def estimate(self, archs: Sequence[Arch]) -> NDArray[np.float64]:
        self._price(op for arch in archs for op in features(arch).ops)
        return super().estimate(archs)

    def _price(self, ops: Iterable[PlacedOp]) -> None:
        """Asks the trees about ops that they were not asked about yet, all at once."""
        new = [op for op in dict.fromkeys(ops) if op not in self._own]
        if new:
            logarithms = self.trees.predict(np.array([describe_op(op) for op in new]))
            self._own.update(zip(new, np.exp(logarithms).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        return {"trees": self.trees.to_json(), "factors": self.factors, "fixed_ms": self.fixed_ms}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Model:
        own, weights, nodes = values["factors"]
        return cls(BoostedTrees.from_json(values["trees"]), (own, weights, nodes), float(values["fixed_ms"]))


@lru_cache(maxsize=2)
def _grown(table: LatencyTable) -> BoostedTrees:
    ops = table_of(table)
    points = np.array([describe_op(op) for op in ops])
    return grow_trees(points, np.log(np.maximum(list(ops.values()), LEAST_MS)))
