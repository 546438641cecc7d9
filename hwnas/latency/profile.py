"""Profile: what every placed op of a space, and some whole networks, take on one device.

A profile is a journal, `latency_models/<device>/profile.jsonl`: a header with the device's fingerprint, then a row per
visit. Profiling an op is profiling a one-node arch. Rows of several spaces share the file, and their common ops.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.ir.text import print_arch
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement
from hwnas.latency.target import fingerprint
from hwnas.latency.visits import QUIET, Levels, Visit
from hwnas.ops import read_arch
from hwnas.placements import placed_ops
from hwnas.space import Space
from hwnas.storage import Journal

FORMAT = "hwnas profile 1"
EMPTY = Arch(TensorSpec((1,)), (), INPUT)  # what calling the runtime costs with nothing to do


def op_arch(placed: PlacedOp) -> Arch:
    """The one-node arch of a placed op. An op of several inputs gets the same tensor for each.

    UserError if its inputs differ in shape: a one-node arch has one input.
    """
    if any(spec != placed.inputs[0] for spec in placed.inputs):
        raise UserError("only ops whose inputs have one shape can be profiled", got=str(placed))
    return Arch(placed.inputs[0], (Node("op", placed.op, (INPUT,) * len(placed.inputs)),), "op")


class Profile:
    """Visits that are valid on one device. `path` is the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._visits: dict[str, list[Visit]] = defaultdict(list)  # by kind
        self._levels: dict[str, Levels] = {}  # by kind, as long as no visit is added
        self._failures: dict[str, str] = {}
        self._archs: dict[str, Arch] = {}  # by their text: an arch is visited several times
        for i in range(len(journal.rows)):
            self._read(i)

    @classmethod
    def load(cls, path: Path, device: Device | None = None) -> Profile:
        """An existing profile. UserError if it is missing or truncated, or of another device or runtime than the one given."""
        if not path.is_file():
            name = f" --device {device.name}" if device else ""
            raise UserError("there is no profile", got=str(path), remedy=f"run hwnas profile{name} first")
        return cls(_check(Journal.read(path), device))

    @classmethod
    def open(cls, path: Path, device: Device) -> Profile:
        """The profile to continue: the existing one, its torn last row dropped, or a new one."""
        if path.exists():
            return cls(_check(Journal.resume(path), device))
        header = {"format": FORMAT, "device": device.name, "fingerprint": fingerprint(device)}
        return cls(Journal.create(path, header))

    @property
    def path(self) -> Path:
        return self._journal.path

    @property
    def device(self) -> str:
        """Its name."""
        return str(self._journal.header.get("device"))

    def text(self) -> str:
        """The journal, as far as it was read and written here: others may have added to the file since."""
        return self._journal.text()

    @property
    def fingerprint(self) -> dict[str, str]:
        """Of the device, when it was profiled."""
        return dict(self._journal.header["fingerprint"])

    @property
    def canary_ms(self) -> float | None:
        """The canary's latency beside networks in the quiet state. None if there were none."""
        return self.quiet_canary_ms("network")

    def quiet_canary_ms(self, kind: str) -> float | None:
        """The canary's latency beside such archs in the quiet state: large ones leave it less of the shared caches."""
        found = [visit.canary_ms for visit in self._visits[kind]]
        return float(np.quantile(found, QUIET)) if found else None

    def visits(self, kind: str, space: str | None = None) -> list[Visit]:
        """In their order; of a space's networks, if it is given by its fingerprint."""
        return [visit for visit in self._visits[kind] if space in (None, visit.space)]

    def levels(self, kind: str) -> Levels:
        """What the archs of a kind take, which must have been visited."""
        if kind not in self._levels:
            self._levels[kind] = Levels(self._visits[kind])
        return self._levels[kind]

    def latencies(self, kind: str, space: str | None = None) -> dict[Arch, float]:
        """Milliseconds of every arch of a kind; none if none was visited."""
        visits = self.visits(kind, space)
        levels = self.levels(kind) if visits else None
        return {v.arch: ms for v in visits if levels and (ms := levels.latency_ms(v.arch)) is not None}

    def ops(self) -> dict[PlacedOp, float]:
        """The latency table, in ms."""
        return {arch.placed(arch.nodes[0]): ms for arch, ms in self.latencies("op").items()}

    def missing(self, space: Space) -> list[PlacedOp]:
        """Placed ops of a space that the profile does not hold."""
        table = self.ops()
        return [placed for placed in placed_ops(space) if placed not in table]

    def retest_error(self, space: Space) -> float | None:
        """Mean relative distance of the two turns of a space's networks: what no predictor can beat. None without any."""
        archs = {visit.arch for visit in self.visits("network", space.fingerprint)}
        found = [self.levels("network").retest(arch) for arch in archs]
        known = [value for value in found if value is not None]
        return float(np.mean(known)) if known else None

    def failures(self) -> dict[str, str]:
        """Why archs, by their text, could not be measured; those that never could."""
        measured = {print_arch(visit.arch) for visits in self._visits.values() for visit in visits} if self._failures else set()
        return {text: reason for text, reason in self._failures.items() if text not in measured}

    def add(self, kind: str, space: str, arch: Arch, turn: int, canary_ms: float, measurement: Measurement) -> None:
        row = {"kind": kind, "space": space, "arch": print_arch(arch), "turn": turn, "canary_ms": canary_ms}
        self._append({**row, **measurement.to_json()})

    def add_failure(self, kind: str, space: str, arch: Arch, reason: str) -> None:
        """A row of what could not be measured, which does not count as measured."""
        self._append({"kind": kind, "space": space, "arch": print_arch(arch), "failed": reason})

    def _append(self, row: dict[str, object]) -> None:
        self._journal.append(row)
        # Read back, so that whoever measured sees the rounded numbers that everybody else will.
        self._read(len(self._journal.rows) - 1)

    def _read(self, index: int) -> None:
        values = self._journal.rows[index]
        if isinstance(values.get("failed"), str):
            self._failures[str(values.get("arch"))] = values["failed"]
            return
        visit = self._visit(index)
        self._visits[visit.kind].append(visit)
        self._levels.pop(visit.kind, None)

    def _visit(self, index: int) -> Visit:
        values, where = self._journal.rows[index], f"line {index + 2} of {self.path} is not a row of a profile"
        try:
            kind, space, text, turn, canary_ms = (values[k] for k in ("kind", "space", "arch", "turn", "canary_ms"))
            if [type(v) for v in (kind, space, text, turn, canary_ms)] != [str, str, str, int, float]:
                raise UserError("kind, space and arch are text, turn and canary_ms numbers", got=str(values)[:80])
            measurement = Measurement.from_json(values)
            if not min(canary_ms, measurement.latency_ms) > 0:
                raise UserError("a latency is above 0 ms", got=(canary_ms, measurement.latency_ms))
            if text not in self._archs:
                self._archs[text] = read_arch(text)
            arch = self._archs[text]
            fits = {"empty": arch == EMPTY, "op": len(arch.nodes) == 1, "network": True}
            if not fits.get(kind) or turn not in (0, 1):
                raise UserError("a visit is of the empty arch, an op or a network, in turn 0 or 1", got=f"{kind}, turn {turn}")
            return Visit(kind, space, arch, turn, canary_ms, measurement)
        except KeyError as error:
            raise UserError(where, got=f"no {error.args[0]}") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


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


def _check(journal: Journal, device: Device | None) -> Journal:
    if journal.header.get("format") != FORMAT:
        raise UserError(f"{journal.path} is not a profile", got=str(journal.header)[:60])
    there = journal.header.get("fingerprint")
    if not isinstance(there, dict):
        raise UserError(f"the profile {journal.path} carries no fingerprint", got=str(there)[:60], remedy="profile again")
    here = fingerprint(device) if device else there
    for key in here | there:
        if there.get(key) != here.get(key):
            raise UserError(
                f"the profile {journal.path} was measured with another {key.replace('_', ' ')}: {there.get(key)}",
                got=here.get(key), remedy="profile again into another folder (--out), or delete the old profile",
            )  # fmt: skip
    return journal
