"""Latency models that give each placed op a price: a network costs the sum of its ops' prices and a fixed amount.

Every such model can be tabulated for a whole space, which is what makes a batch of predictions fast.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.text import print_arch
from hwnas.latency.predictor import LatencyModel, LatencyTable
from hwnas.latency.profile import op_arch
from hwnas.lower.cost import op_macs_params
from hwnas.lower.features import features, fused_nodes
from hwnas.ops import read_arch
from hwnas.regress.linear import fit_nonnegative

Array = NDArray[np.float64]


class AdditiveModel(LatencyModel):
    """`fixed_ms` is what a network costs beside its ops."""

    fixed_ms: float

    @abstractmethod
    def op_ms(self, placed: PlacedOp) -> float:
        """The price of a placed op. UserError if it has none."""

    def beside_ms(self, weight_bytes: Array) -> Array:
        """What a network of so many weight bytes costs beside its ops, [n] -> [n]."""
        return np.zeros_like(weight_bytes)

    def estimate(self, archs: Sequence[Arch]) -> Array:
        totals = [sum(n * self.op_ms(op) for op, n in features(arch).ops.items()) for arch in archs]
        weight_bytes = np.array([features(arch).weight_bytes for arch in archs], np.float64)
        return np.asarray(self.fixed_ms + np.array(totals, np.float64) + self.beside_ms(weight_bytes))


class ProportionalModel(AdditiveModel):
    """Latency linear in one size of a network: the proxies that one has without a profile of the ops."""

    def __init__(self, ms_per_unit: float, fixed_ms: float) -> None:
        self.ms_per_unit, self.fixed_ms = ms_per_unit, fixed_ms

    @staticmethod
    @abstractmethod
    def size(placed: PlacedOp) -> int: ...

    @classmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: Array) -> ProportionalModel:
        sizes = [sum(n * cls.size(op) for op, n in features(arch).ops.items()) for arch in archs]
        ms_per_unit, fixed_ms = fit_nonnegative(np.array([[size, 1.0] for size in sizes]), latency_ms)
        return cls(float(ms_per_unit), float(fixed_ms))

    def op_ms(self, placed: PlacedOp) -> float:
        return self.ms_per_unit * self.size(placed)

    def to_json(self) -> dict[str, Any]:
        return {"ms_per_unit": self.ms_per_unit, "fixed_ms": self.fixed_ms}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ProportionalModel:
        return cls(float(values["ms_per_unit"]), float(values["fixed_ms"]))


class PriceList(AdditiveModel):
    """A price for each of the ops that were profiled."""

    tabulated = True

    def __init__(self, fixed_ms: float, prices: Mapping[PlacedOp, float]) -> None:
        self.fixed_ms, self.prices = fixed_ms, prices

    def op_ms(self, placed: PlacedOp) -> float:
        return lookup(self.prices, placed)

    def to_json(self) -> dict[str, Any]:
        return {"fixed_ms": self.fixed_ms, "ops": [[print_arch(op_arch(op)), ms] for op, ms in self.prices.items()]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PriceList:
        archs = [(read_arch(text), float(ms)) for text, ms in values["ops"]]
        return cls(float(values["fixed_ms"]), {arch.placed(arch.nodes[0]): ms for arch, ms in archs})


class Calibration:
    """Sums over a network's ops, scaled to measured networks with factors that are not negative.

    The columns: what `cost` says of each op, its weight bytes (cold in small networks), its fused nodes (each has its price),
    and one for the call. An isolated op costs more than in a network, where it need not reorder layouts: so it is scaled.
    """

    def __init__(self, cost: Mapping[PlacedOp, float], archs: Sequence[Arch], latency_ms: Array) -> None:
        self._cost = cost
        columns = np.array([self._columns(arch) for arch in archs])
        self.factors = fit_nonnegative(columns, latency_ms)
        self.fitted: Array = columns @ self.factors

    @property
    def fixed_ms(self) -> float:
        return float(self.factors[-1])

    def price(self, placed: PlacedOp, cost: float) -> float:
        """Of an op that costs so much by itself."""
        own, weights, nodes, _ = self.factors
        return float(own * cost + weights * 4e-6 * op_macs_params(placed)[1] + nodes * fused_nodes(placed))

    def _columns(self, arch: Arch) -> list[float]:
        found = features(arch)
        total = sum(count * lookup(self._cost, op) for op, count in found.ops.items())
        return [total, found.weight_bytes / 1e6, float(found.nodes), 1.0]


def lookup(table: Mapping[PlacedOp, float], placed: PlacedOp) -> float:
    """UserError if the table lacks the op."""
    if placed not in table:
        raise UserError("the profile lacks an op of this arch", got=str(placed), remedy="run hwnas profile with its space")
    return table[placed]


def table_of(table: LatencyTable) -> Mapping[PlacedOp, float]:
    """The ops of a table. UserError if there are none."""
    if not table.ops:
        raise UserError(
            f"the profile {table.source} lacks ops", got="none", remedy="run hwnas profile with this space to complete it"
        )
    return table.ops
