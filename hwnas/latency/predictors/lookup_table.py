"""The latency table (ProxylessNAS, Cai et al. 2019, section 3.3), calibrated on whole networks.

An isolated op costs more than the same op inside a network: the runtime reorders its layout at both ends, and each run has a
fixed price. So the sum over the table is scaled, and weight bytes and the number of ops stand beside it, for cold weights and
for the price of an op.
"""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.latency.predictor import LatencyPredictor
from hwnas.latency.profile import Profile
from hwnas.lower.features import features
from hwnas.space import Space


class Predictor(LatencyPredictor):
    def __init__(self, profile: Profile, space: Space) -> None:
        missing = profile.missing(space)
        empty = profile.rows("empty")
        if missing or not empty:
            raise UserError(
                f"the profile {profile.path} lacks {len(missing)} ops of this space",
                got=str(missing[0]) if missing else "no empty run", remedy="run hwnas profile with this space to complete it",
            )  # fmt: skip
        self._call_ms = empty[0].measurement.latency_ms
        self._table = {op: max(0.0, m.latency_ms - self._call_ms) for op, m in profile.ops().items()}
        super().__init__(profile, space)

    def _features(self, arch: Arch) -> list[float]:
        found = features(arch)
        total = sum(count * self._lookup(op) for op, count in found.ops.items())
        return [total, found.weight_bytes / 1e6, float(found.count), 1.0]

    def _lookup(self, op: PlacedOp) -> float:
        if op not in self._table:
            raise UserError("the profile lacks an op of this arch", got=str(op), remedy="run hwnas profile with its space")
        return self._table[op]
