"""features: an arch as numbers for a latency predictor. They depend on the arch alone, so predictors are free of the space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.simplify import placed_ops
from hwnas.lower.cost import op_macs_params


@dataclass(frozen=True)
class Features:
    """Of the simplified arch: how often each placed op occurs, and sums over them.

    `boundary_elements`: elements of the tensors between ops, which a runtime writes and reads again.
    """

    ops: Mapping[PlacedOp, int]
    count: int
    macs: int
    weight_bytes: int
    boundary_elements: int


def features(arch: Arch) -> Features:
    ops = Counter(placed_ops(arch))
    macs = params = boundary = 0
    for placed, count in ops.items():
        op_macs, op_params = op_macs_params(placed)
        macs += count * op_macs
        params += count * op_params
        boundary += count * placed.output.elements
    return Features(dict(ops), sum(ops.values()), macs, 4 * params, boundary)
