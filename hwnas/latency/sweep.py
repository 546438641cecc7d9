"""Sweeps: a profile is taken by visiting everything that it is to hold, several times.

The visits of an arch lie minutes apart and in other company, so that no single state of the host decides. They alternate
between two turns, which are two measurements of the same arch: their distance is the retest error.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.latency.device import Device
from hwnas.latency.measure import Failure, measure
from hwnas.latency.profile import EMPTY, Profile, calibration_archs, op_arch
from hwnas.latency.target import Target
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.placements import placed_ops
from hwnas.space import Space

BATCH = 24  # archs that are interleaved in one call of measure
HOPELESS = 4  # so many models, and none can be measured: it is the device
SWEEPS = 6  # times that everything unsettled is visited
SETTLED = 0.01  # relative distance between an arch's two turns, below which it is not visited again
LEAST_SECONDS = 1.0  # of a batch


@dataclass(frozen=True)
class Item:
    """What a profile is to hold: an arch as a `kind` of visit, and of which `space` if it is a network."""

    kind: str
    space: str
    arch: Arch


@dataclass(frozen=True)
class Coverage:
    """Of `total` items, how many are `measured` twice, and how many of them `settled`: the same both times."""

    total: int
    measured: int
    settled: int


def profile_space(
    profile: Profile,
    device: Device,
    spaces: Space | Sequence[Space],
    *,
    networks: int = 24,
    seconds_per_arch: float = 0.125,
    minutes: float = math.inf,
    improve: bool = False,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Coverage:
    """Measures what the profile still lacks of some spaces: an empty run, `networks` of each space, and every placed op.

    In sweeps, six at most: the first visits everything once, the second everything again, the others what has not settled.
    Interrupted at any moment, or after so many `minutes`, it continues where it stopped. A profile that lacks nothing is left
    alone, unless it is to `improve`. What cannot be measured is recorded with its reason, and tried again in the next call.
    `progress` is told (phase, done, total) before every batch.

    UserError if the device cannot be used, or not any more; what was measured is kept.
    """
    items = _items([spaces] if isinstance(spaces, Space) else spaces, networks)
    deadline = time.monotonic() + 60 * minutes
    failed: set[Item] = set()
    if improve or _State(profile).measured(items) < len(items):
        with Target(device) as target:
            for sweep in range(SWEEPS):
                if deadline - time.monotonic() < LEAST_SECONDS:
                    break
                target.disconnect()  # where memory lies differs from process to process, and latency with it
                state = _State(profile)
                todo = [item for item in items if item not in failed and state.is_due(item, sweep)]
                done = len(items) - len(todo)
                for batch in _batches(todo, sweep):
                    left = deadline - time.monotonic()
                    if left < LEAST_SECONDS:
                        break
                    progress(f"sweep {sweep + 1}", done, len(items))
                    seconds = seconds_per_arch * len(batch) * (2 if batch[0].kind == "network" else 1)
                    failed.update(_visit(state, device, batch, target, min(left, max(LEAST_SECONDS, seconds))))
                    done += len(batch)
                progress(f"sweep {sweep + 1}", done, len(items))
    state = _State(profile)
    return Coverage(len(items), state.measured(items), sum(map(state.is_settled, items)))


class _State:
    """How far a profile is. `count`: how often an item was visited, by turn."""

    def __init__(self, profile: Profile) -> None:
        visits = [v for kind in ("empty", "network", "op") for v in profile.visits(kind)]
        self.profile = profile
        self.count = Counter((Item(v.kind, v.space, v.arch), v.turn) for v in visits)

    def measured(self, items: Sequence[Item]) -> int:
        return sum(1 for item in items if self.count[item, 0] and self.count[item, 1])

    def is_settled(self, item: Item) -> bool:
        retest = self.profile.levels(item.kind).retest(item.arch) if self.measured([item]) else None
        return retest is not None and retest <= SETTLED

    def is_due(self, item: Item, sweep: int) -> bool:
        """Whether a sweep visits an item: two sweeps complete the profile, the others add visits where they are needed."""
        return self.count[item, 0] + self.count[item, 1] <= sweep and not self.is_settled(item)


def _items(spaces: Sequence[Space], networks: int) -> list[Item]:
    """Distinct items, networks of all spaces in turn before the ops."""
    rows = zip_longest(*([Item("network", s.fingerprint, a) for a in calibration_archs(s, networks)] for s in spaces))
    whole = [item for row in rows for item in row if item]
    ops = [Item("op", "", op_arch(placed)) for space in spaces for placed in placed_ops(space)]
    return list(dict.fromkeys([Item("empty", "", EMPTY), *whole, *ops]))


def _batches(items: Sequence[Item], sweep: int) -> Iterator[list[Item]]:
    """Items of one kind, so that all take about as long; after the first sweep in random company and order."""
    rng, batches = Random(sweep), []
    for kind in ("empty", "network", "op"):
        some = [item for item in items if item.kind == kind]
        if sweep:
            rng.shuffle(some)
        batches += [some[start : start + BATCH] for start in range(0, len(some), BATCH)]
    if sweep:
        rng.shuffle(batches)
    return iter(batches)


def _visit(state: _State, device: Device, items: Sequence[Item], target: Target, seconds: float) -> list[Item]:
    """Measures items against each other and records what came of it; returns those that failed."""
    profile = state.profile
    models = [to_onnx(i.arch, init_weights(i.arch)).SerializeToString() for i in items]
    found = measure(models, device, seconds=seconds, canary_ms=profile.quiet_canary_ms(items[0].kind), target=target)
    failed: dict[Item, str] = {}
    for item, outcome in zip(items, found.outcomes, strict=True):
        if isinstance(outcome, Failure):
            profile.add_failure(item.kind, item.space, item.arch, outcome.reason)
            failed[item] = outcome.reason
        else:
            turn = 1 if state.count[item, 1] < state.count[item, 0] else 0
            profile.add(item.kind, item.space, item.arch, turn, found.canary.latency_ms, outcome)
            state.count[item, turn] += 1
    if len(failed) == len(items) >= HOPELESS:
        raise UserError(
            f"none of {len(items)} models could be measured on {device.name}", got=failed[items[0]],
            remedy="mend the device and run the same command again: what was measured is kept",
        )  # fmt: skip
    return list(failed)
