"""measure: how long models take on a device, on a machine that others share.

Models are timed in blocks of at least a millisecond, interleaved in rounds with a reference model, the canary. Host noise is
bimodal (a neighbour makes everything 1.5 to 1.8 times slower, for a tenth of a second or for ten), so the median follows the
neighbours. The primary number is therefore a quiet-state estimate: the mean of the lowest three blocks, out of rounds spread
over time, and it counts as stable when those three agree to 1 % and the canary was seen within 3 % of its own best.

The agent on the target times the blocks; here is decided what is timed next, when it is enough, and what the times amount to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache, partial
from random import Random
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.connection import Lost
from hwnas.latency.device import Device
from hwnas.latency.quantize import quantize
from hwnas.latency.target import Target
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.ops.classifier import Classifier
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.dense import Dense

LOWEST = 3
STRIKES = 3  # connections that a model may cost before it counts as failed
# A number is stable within these limits. It is refused beyond the second ones, and a warning in between.
TOLERANCE, REFUSED_ERROR = 0.01, 0.05
STEAL_LIMIT, REFUSED_STEAL = 0.05, 0.25
RETEST_LIMIT, REFUSED_RETEST = 0.02, 0.10
CANARY_TOLERANCE = 0.03


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of one inference. `latency_ms` is the quiet-state estimate; the rest says how it was come by.

    `error`: relative distance between the lowest and the third lowest block. `stable`: error and canary within their limits.
    `steal`: share of processor time that the host took away meanwhile. `retest`: relative distance between the estimates of the
    turns, each in a process of its own; None if there was one turn.
    """

    latency_ms: float
    median_ms: float
    p90_ms: float
    iqr_ms: float
    blocks: int
    runs: int
    error: float
    stable: bool
    steal: float
    retest: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        """UserError if a field is missing or of another type."""
        try:
            return _READER.validate_python({f.name: values[f.name] for f in fields(cls) if f.name in values})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]} of a measurement: {first['msg']}", got=str(first["input"])) from None

    @property
    def verdict(self) -> str:
        """stable, warn or refused: a refused number is not to be used."""
        if any(value > refused for _, value, _, refused in self._judged()) or self.blocks < LOWEST:
            return "refused"
        return "warn" if self.doubts else "stable"

    @property
    def doubts(self) -> list[str]:
        """What exceeds the limits of a stable number, in words."""
        found = [f"{what} {value:.2%}, limit {limit:.0%}" for what, value, limit, _ in self._judged() if value > limit]
        if self.blocks < LOWEST:
            found.append(f"{self.blocks} blocks, at least {LOWEST} needed")
        return found or ([] if self.stable else [f"the reference model was more than {CANARY_TOLERANCE:.0%} over its best"])

    def _judged(self) -> list[tuple[str, float, float, float]]:
        """What is judged, its value, and the limits of a stable and of a refused number."""
        return [
            ("distance of the lowest blocks", self.error, TOLERANCE, REFUSED_ERROR),
            ("stolen time", self.steal, STEAL_LIMIT, REFUSED_STEAL),
            ("retest error", self.retest or 0.0, RETEST_LIMIT, REFUSED_RETEST),
        ]


_READER = TypeAdapter(Measurement)


@dataclass(frozen=True)
class Failure:
    """Why a model has no measurement."""

    reason: str


@dataclass(frozen=True)
class Measured:
    """Outcomes in the order of the models, and the canary's measurement."""

    outcomes: Sequence[Measurement | Failure]
    canary: Measurement

    @property
    def models(self) -> list[Measurement]:
        """The measurements. UserError if a model has none."""
        found = []
        for outcome in self.outcomes:
            if isinstance(outcome, Failure):
                raise UserError(outcome.reason)
            found.append(outcome)
        return found


@lru_cache(maxsize=1)
def canary_model() -> bytes:
    """A small network, the same for ever, whose latency tells the state of the machine: of its cores, by convolutions, and of
    the memory and caches that it shares with others, by 4 MB of weights, more than a core keeps to itself."""
    layers = [Node(f"layer{i}", ConvBn(32), ("x" if i == 0 else f"layer{i - 1}",)) for i in range(3)]
    layers += [Node("pool", Classifier(1024), ("layer2",)), Node("weights", Dense(1024, "none"), ("pool",))]
    arch = Arch(TensorSpec((32, 16, 16)), tuple(layers), "weights")
    model: bytes = to_onnx(arch, init_weights(arch)).SerializeToString()
    return model


def quiet_state(blocks_ms: Sequence[float]) -> float:
    """The mean of the lowest three."""
    return float(np.mean(sorted(blocks_ms)[:LOWEST]))


def summarize(blocks_ms: Sequence[float], repeats: int, quiet: bool, steal: float, retest: float | None = None) -> Measurement:
    """The measurement that block times per inference amount to. `quiet`: whether the canary was."""
    times = np.sort(np.asarray(blocks_ms, np.float64))
    lowest = times[:LOWEST]
    q1, median, q3, p90 = np.quantile(times, (0.25, 0.5, 0.75, 0.9))
    error = float(lowest[-1] / lowest[0] - 1) if len(lowest) == LOWEST else math.inf
    return Measurement(
        latency_ms=quiet_state(blocks_ms), median_ms=float(median), p90_ms=float(p90), iqr_ms=float(q3 - q1), blocks=len(times),
        runs=len(times) * repeats, error=error, stable=quiet and error <= TOLERANCE and steal <= STEAL_LIMIT, steal=steal,
        retest=retest,
    )  # fmt: skip


@dataclass
class _Candidate:
    """A model under measurement. `turns`: the block times seen so far, in milliseconds per inference, turn by turn."""

    model: bytes
    turns: list[list[float]] = field(default_factory=list)
    repeats: int = 1
    strikes: int = 0
    failure: str | None = None

    @property
    def blocks(self) -> list[float]:
        return [block for turn in self.turns for block in turn]

    def settled(self) -> bool:
        lowest = sorted(self.turns[-1])[:LOWEST]
        return self.failure is not None or (len(lowest) == LOWEST and lowest[-1] <= (1 + TOLERANCE) * lowest[0])

    def retest(self) -> float | None:
        estimates = [quiet_state(turn) for turn in self.turns if len(turn) >= LOWEST]
        return max(estimates) / min(estimates) - 1 if len(estimates) > 1 else None

    def strike(self, reason: str) -> None:
        self.strikes += 1
        if self.strikes == STRIKES:
            self.failure = reason


def _candidate(model: bytes, device: Device) -> _Candidate:
    """The model as the device runs it."""
    try:
        return _Candidate(quantize(model) if device.precision == "int8" else model)
    except UserError as error:
        return _Candidate(model, failure=str(error))


class _Rounds:
    """Rounds over candidates, through lost connections: a fresh one is made, and what was timed before still counts.

    A model that breaks connections is found by timing each alone after a loss; at the third strike it is out.
    """

    def __init__(self, target: Target, candidates: Sequence[_Candidate]) -> None:
        self.target, self.candidates = target, candidates
        self.ready = self.alone = False
        self.stolen = self.ticks = 0

    def round(self, order: Sequence[int]) -> None:
        """A block of each candidate that has not failed; again from its start if the connection is lost on the way.

        UserError if there is no connection to be had any more.
        """
        while True:
            suspect: _Candidate | None = None
            try:
                if not self.ready:
                    self.target.connection()
                    for slot, suspect in enumerate(self.candidates):
                        self._open(slot, suspect)
                    self.ready, suspect = True, None
                live = [slot for slot in order if self.candidates[slot].failure is None]
                for slots in [[slot] for slot in live] if self.alone else [live]:
                    suspect = self.candidates[slots[0]] if self.alone else None
                    self._time(slots)
                self.alone = False
                return
            except Lost as lost:
                if suspect:
                    suspect.strike(str(lost))
                self.ready, self.alone = False, True
                self.target.reconnect()

    def restart(self) -> None:
        """The next round is on a fresh connection, with fresh sessions."""
        self.target.disconnect()
        self.ready = False

    def _open(self, slot: int, candidate: _Candidate) -> None:
        if candidate.failure is None:
            try:
                candidate.repeats = self.target.open(slot, candidate.model)
            except UserError as error:
                candidate.failure = str(error)

    def _time(self, slots: Sequence[int]) -> None:
        found = self.target.round(slots)
        for slot, ms in zip(slots, found.ms, strict=True):
            self.candidates[slot].turns[-1].append(ms)
        self.stolen, self.ticks = self.stolen + found.stolen, self.ticks + found.ticks

    @property
    def steal(self) -> float:
        return self.stolen / self.ticks if self.ticks > 0 else 0.0


def measure(
    models: Sequence[bytes],
    device: Device,
    *,
    seconds: float = 10.0,
    min_rounds: int = 10,
    turns: int = 1,
    canary_ms: float | None = None,
    target: Target | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda done: None,
) -> Measured:
    """Measures models (serialized ONNX) against each other on a device.

    Rounds go on until every model has settled and the canary is quiet, at least `min_rounds` and at most about `seconds` after
    warming up. `turns`: so many parts of the time, each on a fresh connection, which give the retest error. `canary_ms`: the
    canary's latency here in the quiet state, from a profile; without one, its best in this call. `target`: a connection to go
    on with. `progress` is told the share of `seconds` that has passed.

    What a model cannot do is told by its outcome. UserError if the device cannot be used.
    """
    canary = _Candidate(canary_model())
    candidates = [canary, *(_candidate(model, device) for model in models)]
    with nullcontext(target) if target else Target(device) as there:
        rounds = _Rounds(there, candidates)
        lost, quiet = "", True
        for turn in range(turns):
            for candidate in candidates:
                candidate.turns.append([])
            if turn:
                rounds.restart()
            try:
                told = partial(_tell_part, progress, turn, turns)
                quiet &= _one_turn(rounds, seconds / turns, min_rounds, canary_ms, clock, told)
            except UserError as error:  # the device is gone for good; what was timed until now stands
                if len(canary.blocks) < LOWEST:
                    raise
                lost, quiet = str(error), False
                break
    quiet = quiet and rounds.steal <= STEAL_LIMIT
    outcomes = [_outcome(c, quiet, rounds.steal, lost) for c in candidates]
    if isinstance(outcomes[0], Failure):
        raise UserError(f"{device.name} cannot run the reference model", got=outcomes[0].reason)
    return Measured(outcomes[1:], outcomes[0])


def _one_turn(
    rounds: _Rounds,
    seconds: float,
    min_rounds: int,
    canary_ms: float | None,
    clock: Callable[[], float],
    progress: Callable[[float], None],
) -> bool:
    """Rounds until it is enough. Returns whether the canary was quiet."""
    canary, *_ = rounds.candidates
    # The canary takes its turn anywhere: who comes first after a pause is spared by the scheduler, and would see no neighbours.
    order = list(range(len(rounds.candidates)))
    shuffle = Random(0).shuffle
    start, done = math.nan, 0
    while True:
        shuffle(order)
        rounds.round(order)
        done += 1
        if canary.failure:
            return False
        start = clock() if math.isnan(start) else start
        passed = clock() - start
        progress(min(1.0, passed / seconds))
        if done < LOWEST:  # too few to tell
            continue
        known = min(canary_ms or math.inf, min(canary.blocks))
        quiet = sorted(canary.turns[-1])[LOWEST - 1] <= (1 + CANARY_TOLERANCE) * known
        if passed >= seconds or (done >= min_rounds and quiet and all(c.settled() for c in rounds.candidates)):
            return quiet


def _tell_part(progress: Callable[[float], None], turn: int, turns: int, share: float) -> None:
    progress((turn + share) / turns)


def _outcome(candidate: _Candidate, quiet: bool, steal: float, lost: str) -> Measurement | Failure:
    if candidate.failure is not None:
        return Failure(candidate.failure)
    if len(candidate.blocks) < LOWEST:
        return Failure(lost)
    return summarize(candidate.blocks, candidate.repeats, quiet, steal, candidate.retest())
