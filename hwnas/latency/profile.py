"""Profile: the measured latency of every placed op of a space, and of some whole networks, on one device.

A profile is a journal, `latency_models/<device>/profile.jsonl`: a header with the device's fingerprint, then a row per
visit. Profiling an op is profiling a one-node arch. Rows of several spaces share the file, and their common ops.

A space is swept several times, so that the visits of an arch lie minutes apart and no single state of the host decides. Visits
alternate between two turns, which are two measurements of the same arch: their distance is the retest error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from random import Random

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.ir.text import print_arch
from hwnas.latency.device import Device
from hwnas.latency.measure import CANARY_TOLERANCE, Failure, Measurement, measure
from hwnas.latency.target import Target, fingerprint
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.placements import placed_ops
from hwnas.space import Space
from hwnas.storage import Journal

FORMAT = "hwnas profile 1"
EMPTY = Arch(TensorSpec((1,)), (), INPUT)  # what calling the runtime costs with nothing to do
BATCH = 24  # archs that are interleaved in one call of measure
HOPELESS = 4  # so many models, and none can be measured: it is the device
SWEEPS = 6  # times that everything unsettled is visited
SETTLED = 0.02  # relative distance between an arch's two turns, below which it is not visited again
LEAST_SECONDS = 2.0  # of a batch


@dataclass(frozen=True)
class Row:
    """One visit of an arch. `kind` is empty, op or network; `turn`, 0 or 1, is the measurement to which it belongs."""

    kind: str
    space: str
    arch: Arch
    turn: int
    canary_ms: float
    measurement: Measurement


def op_arch(placed: PlacedOp) -> Arch:
    """The one-node arch of a placed op. An op of several inputs gets the same tensor for each.

    UserError if its inputs differ in shape: a one-node arch has one input.
    """
    if any(spec != placed.inputs[0] for spec in placed.inputs):
        raise UserError("only ops whose inputs have one shape can be profiled", got=str(placed))
    return Arch(placed.inputs[0], (Node("op", placed.op, (INPUT,) * len(placed.inputs)),), "op")


@dataclass(frozen=True)
class Item:
    """What a profile is to hold: an arch as a `kind` of row, and of which `space` if it is a network."""

    kind: str
    space: str
    arch: Arch

    @cached_property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.space, print_arch(self.arch)


class Profile:
    """Rows that are valid on one device. `path` is the journal."""

    def __init__(self, journal: Journal, device: Device) -> None:
        self._journal = journal
        self.device = device
        self._visits: dict[tuple[str, str, str], list[Row]] = {}  # by kind, space and text of the arch
        self._canary_ms: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        for i in range(len(journal.rows)):
            self._read(i)

    @property
    def path(self) -> Path:
        return self._journal.path

    @classmethod
    def load(cls, path: Path, device: Device) -> Profile:
        """An existing profile. UserError if it is missing, truncated, of another device or of another runtime."""
        if not path.is_file():
            raise UserError("there is no profile", got=str(path), remedy=f"run hwnas profile --device {device.name} first")
        return cls(_check(Journal.read(path), device), device)

    @classmethod
    def open(cls, path: Path, device: Device) -> Profile:
        """The profile to continue: the existing one, its torn last row dropped, or a new one."""
        if path.exists():
            return cls(_check(Journal.resume(path), device), device)
        header = {"format": FORMAT, "device": device.name, "fingerprint": fingerprint(device)}
        return cls(Journal.create(path, header), device)

    @property
    def canary_ms(self) -> float | None:
        """The canary's lowest latency beside networks: how fast this machine is when it is quiet. None if none was measured."""
        return self.best_canary_ms("network")

    def best_canary_ms(self, kind: str) -> float | None:
        """The canary's lowest latency beside such archs: large ones leave it less of the shared caches."""
        return self._canary_ms.get(kind)

    def rows(self, kind: str, space: str | None = None) -> list[Row]:
        """A row for each arch and turn: of its quiet visits the fastest, and if none was quiet the quietest."""
        found = []
        for (its_kind, its_space, _), visits in self._visits.items():
            if its_kind == kind and space in (None, its_space):
                turns = {row.turn: [r for r in visits if r.turn == row.turn] for row in visits}
                found += [self._best(turn) for turn in turns.values()]
        return found

    def is_quiet(self, row: Row) -> bool:
        """Whether the canary was within 3 % of the best that this machine ever showed with such company."""
        return row.canary_ms <= (1 + CANARY_TOLERANCE) * self._canary_ms[row.kind]

    def visits(self, item: Item, turn: int | None = None) -> list[Row]:
        visits = self._visits.get(item.key, [])
        return [row for row in visits if turn in (None, row.turn)]

    def lacks(self, item: Item) -> bool:
        """Whether one of its turns was never measured."""
        return len({row.turn for row in self.visits(item)}) < 2

    def is_settled(self, item: Item) -> bool:
        """Whether both its turns had a quiet visit, and agree."""
        turns = [[r for r in self.visits(item, turn) if self.is_quiet(r)] for turn in (0, 1)]
        if not all(turns):
            return False
        low, high = sorted(self._best(turn).measurement.latency_ms for turn in turns)
        return high <= (1 + SETTLED) * low

    def failures(self) -> dict[str, str]:
        """Why archs, by their text, could not be measured; those that never could."""
        measured = {text for _, _, text in self._visits}
        return {text: reason for text, reason in self._failures.items() if text not in measured}

    def _best(self, rows: Sequence[Row]) -> Row:
        quiet = [row for row in rows if self.is_quiet(row)]
        if quiet:
            return min(quiet, key=lambda row: row.measurement.latency_ms)
        return min(reversed(rows), key=lambda row: row.canary_ms)

    def ops(self) -> dict[PlacedOp, Measurement]:
        """The latency table: of both turns the better one."""
        rows = [self._best(visits) for (kind, _, _), visits in self._visits.items() if kind == "op"]
        return {r.arch.placed(r.arch.nodes[0]): r.measurement for r in rows}

    def missing(self, space: Space) -> list[PlacedOp]:
        """Placed ops of a space that the profile does not hold."""
        table = self.ops()
        return [placed for placed in placed_ops(space) if placed not in table]

    def add(self, kind: str, space: str, arch: Arch, turn: int, canary_ms: float, measurement: Measurement) -> None:
        row = {"kind": kind, "space": space, "arch": print_arch(arch), "turn": turn, "canary_ms": canary_ms}
        self._append({**row, **measurement.to_json()})

    def add_failure(self, item: Item, reason: str) -> None:
        """A row of what could not be measured, which does not count as measured."""
        self._append({"kind": item.kind, "space": item.space, "arch": print_arch(item.arch), "failed": reason})

    def _append(self, row: dict[str, object]) -> None:
        self._journal.append(row)
        # Read back, so that whoever measured sees the rounded numbers that everybody else will.
        self._read(len(self._journal.rows) - 1)

    def _read(self, index: int) -> None:
        values = self._journal.rows[index]
        if isinstance(values.get("failed"), str):
            self._failures[str(values.get("arch"))] = values["failed"]
            return
        row = _row(self._journal, index)
        self._visits.setdefault((row.kind, row.space, values["arch"]), []).append(row)
        self._canary_ms[row.kind] = min(row.canary_ms, self._canary_ms.get(row.kind, math.inf))


def calibration_archs(space: Space, count: int) -> list[Arch]:
    """Whole networks to calibrate and judge predictors with: distinct random archs of the space, always the same."""
    rng = Random(2024)
    found: dict[str, Arch] = {}
    for _ in range(20 * count):
        arch = simplify(space.decode(space.sample(rng)))
        found.setdefault(arch.key, arch)
        if len(found) == count:
            break
    return list(found.values())


@dataclass(frozen=True)
class Coverage:
    """Of `total` items, how many are `measured`, and how many `settled`: measured twice in a quiet state, and the same."""

    total: int
    measured: int
    settled: int


def profile_space(
    profile: Profile,
    spaces: Space | Sequence[Space],
    *,
    networks: int = 24,
    seconds_per_arch: float = 0.25,
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
    if improve or any(map(profile.lacks, items)):
        with Target(profile.device) as target:
            for sweep in range(SWEEPS):
                target.disconnect()  # where memory lies differs from process to process, and latency with it
                todo = [item for item in items if item not in failed and _is_due(profile, item, sweep)]
                done = len(items) - len(todo)
                for batch in _batches(todo, sweep):
                    left = deadline - time.monotonic()
                    if left < LEAST_SECONDS:
                        break
                    progress(f"sweep {sweep + 1}", done, len(items))
                    seconds = seconds_per_arch * len(batch) * (2 if batch[0].kind == "network" else 1)
                    failed.update(_visit(profile, batch, target, min(left, max(LEAST_SECONDS, seconds))))
                    done += len(batch)
                progress(f"sweep {sweep + 1}", done, len(items))
    lacking = sum(map(profile.lacks, items))
    return Coverage(len(items), len(items) - lacking, sum(map(profile.is_settled, items)))


def _items(spaces: Sequence[Space], networks: int) -> list[Item]:
    """Distinct items, networks of all spaces in turn before the ops."""
    rows = zip_longest(*([Item("network", s.fingerprint, a) for a in calibration_archs(s, networks)] for s in spaces))
    whole = [item for row in rows for item in row if item]
    ops = [Item("op", "", op_arch(placed)) for space in spaces for placed in placed_ops(space)]
    return list(dict.fromkeys([Item("empty", "", EMPTY), *whole, *ops]))


def _is_due(profile: Profile, item: Item, sweep: int) -> bool:
    """Whether a sweep visits an item: two sweeps complete the profile, the others add quiet visits where they are needed."""
    visits = profile.visits(item)
    counted = visits if sweep < 2 else [row for row in visits if profile.is_quiet(row)]
    return len(counted) <= sweep and not profile.is_settled(item)


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


def _visit(profile: Profile, items: Sequence[Item], target: Target, seconds: float) -> list[Item]:
    """Measures items against each other and records what came of it; returns those that failed."""
    models = [to_onnx(i.arch, init_weights(i.arch)).SerializeToString() for i in items]
    found = measure(models, profile.device, seconds=seconds, canary_ms=profile.best_canary_ms(items[0].kind), target=target)
    failed: dict[Item, str] = {}
    for item, outcome in zip(items, found.outcomes, strict=True):
        if isinstance(outcome, Failure):
            profile.add_failure(item, outcome.reason)
            failed[item] = outcome.reason
        else:
            turn = 1 if _count(profile, item, 1) < _count(profile, item, 0) else 0
            profile.add(item.kind, item.space, item.arch, turn, found.canary.latency_ms, outcome)
    if len(failed) == len(items) >= HOPELESS:
        raise UserError(
            f"none of {len(items)} models could be measured on {profile.device.name}", got=failed[items[0]],
            remedy="mend the device and run the same command again: what was measured is kept",
        )  # fmt: skip
    return list(failed)


def _count(profile: Profile, item: Item, turn: int) -> tuple[int, int]:
    """Quiet visits of a turn, and all."""
    visits = profile.visits(item, turn)
    return sum(map(profile.is_quiet, visits)), len(visits)


def retest_error(profile: Profile, space: Space) -> float | None:
    """Mean absolute relative difference between the two turns of the networks: what no predictor can beat."""
    turns: dict[str, dict[int, float]] = {}
    for row in profile.rows("network", space.fingerprint):
        turns.setdefault(print_arch(row.arch), {})[row.turn] = row.measurement.latency_ms
    pairs = [t for t in turns.values() if len(t) == 2]
    return sum(abs(t[1] / t[0] - 1) for t in pairs) / len(pairs) if pairs else None


def _row(journal: Journal, index: int) -> Row:
    values = journal.rows[index]
    try:
        kind, space, arch, turn, canary_ms = (values[k] for k in ("kind", "space", "arch", "turn", "canary_ms"))
        typed = all(isinstance(v, str) for v in (kind, space, arch)) and type(turn) is int and type(canary_ms) is float
        if not typed:
            raise UserError("kind, space and arch are text, turn and canary_ms numbers", got=str(values)[:80])
        return Row(kind, space, read_arch(arch), turn, canary_ms, Measurement.from_json(values))
    except KeyError as error:
        raise UserError(f"line {index + 2} of {journal.path} is not a row of a profile", got=f"no {error.args[0]}") from None
    except UserError as error:
        raise UserError(f"line {index + 2} of {journal.path} is not a row of a profile: {error}") from None


def _check(journal: Journal, device: Device) -> Journal:
    if journal.header.get("format") != FORMAT:
        raise UserError(f"{journal.path} is not a profile", got=str(journal.header)[:60])
    here, there = fingerprint(device), journal.header.get("fingerprint")
    if not isinstance(there, dict):
        raise UserError(f"the profile {journal.path} carries no fingerprint", got=str(there)[:60], remedy="profile again")
    for key in here | there:
        if there.get(key) != here.get(key):
            raise UserError(
                f"the profile {journal.path} was measured with another {key.replace('_', ' ')}: {there.get(key)}",
                got=here.get(key), remedy="profile again into another folder (--out), or delete the old profile",
            )  # fmt: skip
    return journal
