"""Visits, and what they amount to: how long each arch takes when the device is quiet.

On a shared host every batch of archs that are timed against each other meets another state of the machine, and the states
differ more (4 % where this was developed) than the archs' own times do from visit to visit (1 %). So the times are split: log
latency = level of the arch + state of its batch + noise. Archs come in other company each time, so that all of a batch tell its
state; the canary, which is in every batch, links batches that share nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.ir.arch import Arch
from hwnas.latency.measure import Measurement
from hwnas.regress.two_way import two_way

QUIET = 0.25  # the share of visits in batches at most as slow as the state that counts as quiet


@dataclass(frozen=True)
class Visit:
    """An arch in a batch. `kind` is empty, op or network; `turn`, 0 or 1, is the measurement of the arch to which it belongs.

    `canary_ms` is the canary's latency in the batch, and names it: no two batches of a kind measure the same to the last digit.
    """

    kind: str
    space: str
    arch: Arch
    turn: int
    canary_ms: float
    measurement: Measurement


class Levels:
    """Milliseconds of the archs of some visits, all of one kind, in the quiet state."""

    def __init__(self, visits: Sequence[Visit]) -> None:
        archs: dict[Arch, int] = {}
        batches: dict[float, int] = {}
        row = np.array([archs.setdefault(v.arch, len(archs)) for v in visits], np.intp)
        column = np.array([batches.setdefault(v.canary_ms, len(batches)) for v in visits], np.intp)
        ms = np.log([v.measurement.latency_ms for v in visits])
        canary = np.full(len(batches), len(archs), np.intp)
        rows, columns = np.concatenate([row, canary]), np.concatenate([column, np.arange(len(batches))])
        level, state = two_way(rows, columns, np.concatenate([ms, np.log([*batches])]))
        quiet = np.quantile(state[column], QUIET)
        self._ms = {arch: float(np.exp(level[i] + quiet)) for arch, i in archs.items()}
        self._turns: dict[tuple[Arch, int], list[float]] = defaultdict(list)
        for visit, found in zip(visits, ms - state[column] + quiet, strict=True):
            self._turns[visit.arch, visit.turn].append(float(found))

    def latency_ms(self, arch: Arch, turn: int | None = None) -> float | None:
        """By all visits, or by those of a turn alone; None if there were none."""
        if turn is None:
            return self._ms.get(arch)
        found = self._turns.get((arch, turn))
        return float(np.exp(np.mean(found))) if found else None

    def retest(self, arch: Arch) -> float | None:
        """Relative distance of the two turns; None if one is missing."""
        first, second = self.latency_ms(arch, 0), self.latency_ms(arch, 1)
        return None if first is None or second is None else max(first, second) / min(first, second) - 1
