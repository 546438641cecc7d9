"""Where a network's time goes: its ops by themselves against the network from end to end.

By itself an op pays for a call of the runtime, and for reordering layouts; in its place it pays for neither, shares and fuses
kernels with its neighbours, and finds its weights cold. The sum of the ops less the calls that one run does not make, and the
network's own time, differ by all of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.latency.predictor import LatencyTable, Networks
from hwnas.latency.profile import Profile
from hwnas.lower.features import features, saved_kernels
from hwnas.space import Space


@dataclass(frozen=True)
class Reconciliation:
    """Means over `networks` networks, in ms: isolated_ms - calls_ms + in_place_ms = end_to_end_ms.

    `isolated_ms`: the sum of the ops, each run by itself. `calls_ms`: what all calls of the runtime but one took of it.
    `in_place_ms`: what the ops cost more, or less, in their places. `saved_kernels`: kernels that fusion and sharing save
    across the borders of ops. `spread`: standard deviation of end-to-end over the sum of ops with one call. `by_kind`: what the
    ops of each kind cost by themselves, above a call.
    """

    networks: int
    isolated_ms: float
    calls_ms: float
    in_place_ms: float
    end_to_end_ms: float
    saved_kernels: float
    spread: float
    by_kind: Mapping[str, float]

    @property
    def scale(self) -> float:
        """End to end over the sum of the ops with one call."""
        return self.end_to_end_ms / (self.isolated_ms - self.calls_ms)


def reconcile(profile: Profile, spaces: Sequence[Space]) -> Reconciliation | None:
    """Over the profile's networks of these spaces all of whose ops it holds; None where there are none."""
    table, measured = LatencyTable.of(profile), Networks.of(profile, spaces)
    rows: list[tuple[float, float, float, int]] = []
    kinds: dict[str, float] = defaultdict(float)
    for arch, latency_ms in zip(measured.archs, measured.latency_ms.tolist(), strict=True):
        found = features(arch)
        if any(op not in table.ops for op in found.ops):
            continue
        above = sum(count * table.ops[op] for op, count in found.ops.items())
        saved = sum(count for kernel, count in saved_kernels(arch).items() if kernel.launches)
        rows.append((above + found.count * table.call_ms, (found.count - 1) * table.call_ms, latency_ms, saved))
        for op, count in found.ops.items():
            kinds[op.op.name()] += count * table.ops[op]
    if not rows:
        return None
    isolated, calls, whole, saved_count = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    by_kind = {kind: total / len(rows) for kind, total in sorted(kinds.items(), key=lambda item: -item[1])}
    return Reconciliation(
        networks=len(rows), isolated_ms=float(isolated.mean()), calls_ms=float(calls.mean()),
        in_place_ms=float((whole - isolated + calls).mean()), end_to_end_ms=float(whole.mean()),
        saved_kernels=float(saved_count.mean()), spread=float((whole / (isolated - calls)).std()), by_kind=by_kind,
    )  # fmt: skip
