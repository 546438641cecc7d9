"""The latency table (ProxylessNAS, Cai et al. 2019, section 3.3), calibrated on whole networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.arch import Arch
from hwnas.latency.additive import Calibration, PriceList, table_of
from hwnas.latency.predictor import LatencyTable


class Model(PriceList):
    @classmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: NDArray[np.float64]) -> Model:
        calibration = Calibration(table_of(table), archs, latency_ms)
        return cls(calibration.fixed_ms, {op: calibration.price(op, ms) for op, ms in table.ops.items()})
