"""Profile: the measured latency of every placed op of a space, and of some whole networks, on one device.

A profile is a journal, `latency_models/<device>/profile.jsonl`: a header with the device's fingerprint, then a row per
measurement. Profiling an op is profiling a one-node arch. Rows of several spaces share the file, and their common ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.op import PlacedOp
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.ir.text import print_arch
from hwnas.latency.device import Device
from hwnas.latency.measure import CANARY_TOLERANCE, Measurement, measure
from hwnas.latency.session import fingerprint
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.placements import placed_ops
from hwnas.space import Space
from hwnas.storage import Journal

FORMAT = "hwnas profile 1"
EMPTY = Arch(TensorSpec((1,)), (), INPUT)  # what calling the runtime costs with nothing to do
BATCH = 24  # archs that are interleaved in one call of measure
RETRIES = 2  # how often rows are measured again because the machine was found to be faster than it was then


@dataclass(frozen=True)
class Row:
    """One measured arch. `kind` is empty, op or network; networks are measured in two passes, for the retest error."""

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


class Profile:
    """Rows that are valid on one device. `path` is the journal."""

    def __init__(self, journal: Journal, device: Device) -> None:
        self._journal = journal
        self.device = device
        self._rows = [_row(journal, i) for i in range(len(journal.rows))]

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
        """The canary's lowest latency of all rows: how fast this machine is when it is quiet."""
        return min((r.canary_ms for r in self._rows), default=None)

    def rows(self, kind: str, space: str | None = None) -> list[Row]:
        """The row of each arch and turn for which the machine was quietest: its canary the lowest, the later one of equals."""
        quietest: dict[tuple[str, int], Row] = {}
        for row in self._rows:
            if row.kind == kind and (space is None or row.space == space):
                key = (print_arch(row.arch), row.turn)
                if key not in quietest or row.canary_ms <= quietest[key].canary_ms:
                    quietest[key] = row
        return list(quietest.values())

    def is_quiet(self, row: Row) -> bool:
        """Whether the canary was within 3 % of the best that this machine ever showed."""
        return row.canary_ms <= (1 + CANARY_TOLERANCE) * (self.canary_ms or 0.0)

    def ops(self) -> dict[PlacedOp, Measurement]:
        """The latency table."""
        return {r.arch.placed(r.arch.nodes[0]): r.measurement for r in self.rows("op")}

    def missing(self, space: Space) -> list[PlacedOp]:
        """Placed ops of a space that the profile does not hold."""
        table = self.ops()
        return [placed for placed in placed_ops(space) if placed not in table]

    def add(self, kind: str, space: str, arch: Arch, turn: int, canary_ms: float, measurement: Measurement) -> None:
        row = {"kind": kind, "space": space, "arch": print_arch(arch), "turn": turn, "canary_ms": canary_ms}
        self._journal.append({**row, **measurement.to_json()})
        # Read back, so that whoever measured sees the rounded numbers that everybody else will.
        self._rows.append(_row(self._journal, len(self._journal.rows) - 1))


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


def profile_space(
    profile: Profile,
    space: Space,
    *,
    networks: int = 24,
    seconds_per_arch: float = 0.25,
    improve: bool = False,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> None:
    """Measures what the profile still lacks of a space: networks, every placed op, then the networks again.

    Interrupted at any moment, it continues where it stopped. If anything was lacking, or to `improve` a complete profile, rows
    whose canary was more than 3 % slower than the fastest seen are then measured again, twice at most; the quietest stands.
    `progress` is told (phase, done, total) after every batch.
    """
    archs = calibration_archs(space, networks)
    ops = [op_arch(placed) for placed in placed_ops(space)]
    phases: list[tuple[str, str, Sequence[Arch], int]] = [
        ("empty", "empty", [EMPTY], 0),
        ("networks", "network", archs, 0),
        ("operators", "op", ops, 0),
        ("networks again", "network", archs, 1),
    ]
    for attempt in range(1 + RETRIES):
        measured = False
        for phase, kind, todo, turn in phases:
            tag = space.fingerprint if kind == "network" else ""
            rows = [r for r in profile.rows(kind, tag) if r.turn == turn]
            have = {print_arch(r.arch) for r in rows if attempt == 0 or profile.is_quiet(r)}
            left = [a for a in todo if print_arch(a) not in have]
            measured = measured or bool(left)
            for start in range(0, len(left), BATCH):
                progress(phase, len(todo) - len(left) + start, len(todo))
                batch = left[start : start + BATCH]
                models = [to_onnx(a, init_weights(a)).SerializeToString() for a in batch]
                found = measure(
                    models, profile.device, seconds=max(2.0, seconds_per_arch * len(batch)), canary_ms=profile.canary_ms
                )
                for arch, measurement in zip(batch, found.models, strict=True):
                    profile.add(kind, tag, arch, turn, found.canary.latency_ms, measurement)
            progress(phase, len(todo), len(todo))
        if not measured and not (improve and attempt == 0):
            return


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
    for key, value in here.items():
        if there.get(key) != value:
            raise UserError(
                f"the profile {journal.path} was measured with another {key.replace('_', ' ')}: {there.get(key)}",
                got=value, remedy="profile again into another folder (--out), or delete the old profile",
            )  # fmt: skip
    return journal
