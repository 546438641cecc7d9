"""measure: how long models take on a device, on a machine that others share.

Models are timed in blocks of at least a millisecond, interleaved in rounds with a reference model, the canary. Host noise is
bimodal (a neighbour makes everything 1.5 to 1.8 times slower, for a tenth of a second or for ten), so the median follows the
neighbours. The primary number is therefore a quiet-state estimate: the mean of the lowest three blocks, out of rounds spread
over time, and it counts as stable when those three agree to 1 % and the canary was seen within 3 % of its own best.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import init_weights
from hwnas.ops.conv_bn import ConvBn

BLOCK_SECONDS = 1e-3
WARM_UP_SECONDS = 5e-3
WARM_UP_RUNS = 5
LOWEST = 3
UNTIMED = 3
TOLERANCE = 0.01
CANARY_TOLERANCE = 0.03
STEAL_LIMIT = 0.05


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of one inference. `latency_ms` is the quiet-state estimate; the rest says how it was come by.

    `error`: relative distance between the lowest and the third lowest block. `stable`: error and canary within their limits.
    `steal`: share of processor time that the host took away meanwhile.
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

    def to_json(self) -> dict[str, Any]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        """UserError if a field is missing or of another type."""
        try:
            return _READER.validate_python({f.name: values[f.name] for f in fields(cls) if f.name in values})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]} of a measurement: {first['msg']}", got=str(first["input"])) from None


_READER = TypeAdapter(Measurement)


@lru_cache(maxsize=1)
def canary_model() -> bytes:
    """A small convolutional network, the same for ever, whose latency tells the state of the machine."""
    layers = tuple(Node(f"layer{i}", ConvBn(32), ("x" if i == 0 else f"layer{i - 1}",)) for i in range(3))
    arch = Arch(TensorSpec((32, 16, 16)), layers, "layer2")
    model: bytes = to_onnx(arch, init_weights(arch)).SerializeToString()
    return model


def summarize(blocks_ms: Sequence[float], repeats: int, quiet: bool, steal: float) -> Measurement:
    """The measurement that block times per inference amount to. `quiet`: whether the canary was."""
    times = np.sort(np.asarray(blocks_ms, np.float64))
    lowest = times[:LOWEST]
    q1, median, q3, p90 = np.quantile(times, (0.25, 0.5, 0.75, 0.9))
    error = float(lowest[-1] / lowest[0] - 1) if len(lowest) == LOWEST else math.inf
    return Measurement(
        latency_ms=float(lowest.mean()), median_ms=float(median), p90_ms=float(p90), iqr_ms=float(q3 - q1), blocks=len(times),
        runs=len(times) * repeats, error=error, stable=quiet and error <= TOLERANCE, steal=steal,
    )  # fmt: skip


class _Candidate:
    """A session under measurement and the block times seen so far, in milliseconds per inference."""

    def __init__(self, model: bytes, device: Device, clock: Callable[[], float]) -> None:
        self.session = Session(model, device)
        self.clock = clock
        self.blocks: list[float] = []
        self.repeats = self._warm_up()

    def _warm_up(self) -> int:
        """Runs until enough time and runs have passed and the last run is no faster trend; returns the runs of one block."""
        best, spent, runs = math.inf, 0.0, 0
        improved = True
        while runs < 1000 and (runs < WARM_UP_RUNS or spent < WARM_UP_SECONDS or improved):
            start = self.clock()
            self.session.run()
            took = self.clock() - start
            improved = took < 0.95 * best
            best, spent, runs = min(best, took), spent + took, runs + 1
        return max(1, math.ceil(BLOCK_SECONDS / max(best, 1e-9)))

    def block(self) -> float:
        run, clock = self.session.run, self.clock
        for _ in range(UNTIMED):  # the others' turns left the caches cold: without this, 24 models cost each 3 to 7 %
            run()
        start = clock()
        for _ in range(self.repeats):
            run()
        took = (clock() - start) * 1e3 / self.repeats
        self.blocks.append(took)
        return took

    def settled(self) -> bool:
        lowest = sorted(self.blocks)[:LOWEST]
        return len(lowest) == LOWEST and lowest[-1] <= (1 + TOLERANCE) * lowest[0]


@dataclass(frozen=True)
class Measured:
    """Measurements in the order of the models, and the canary's."""

    models: list[Measurement]
    canary: Measurement


def measure(
    models: Sequence[bytes],
    device: Device,
    *,
    seconds: float = 10.0,
    min_rounds: int = 10,
    canary_ms: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda done: None,
) -> Measured:
    """Measures models (serialized ONNX) against each other on a device.

    Rounds go on until every model has settled and the canary is quiet, at least `min_rounds` and at most about `seconds` after
    warming up. `canary_ms`: the canary's best known latency here, from a profile; without one, its best in this call.
    `progress` is told the share of `seconds` that has passed.
    """
    with _undisturbed(device):
        canary = _Candidate(canary_model(), device, clock)
        candidates = [_Candidate(model, device, clock) for model in models]
        order = list(range(len(candidates)))
        shuffle = Random(0).shuffle
        start, ticks, rounds = clock(), _cpu_ticks(), 0
        while True:
            shuffle(order)
            canary.block()
            for i in order:
                candidates[i].block()
            rounds += 1
            passed = clock() - start
            progress(min(1.0, passed / seconds))
            known = min(canary_ms or math.inf, min(canary.blocks))
            quiet = sorted(canary.blocks)[:LOWEST][-1] <= (1 + CANARY_TOLERANCE) * known
            if rounds < LOWEST:  # too few to tell
                continue
            if passed >= seconds or (rounds >= min_rounds and quiet and all(c.settled() for c in candidates)):
                break
        steal = _steal(ticks, _cpu_ticks())
    quiet = quiet and steal <= STEAL_LIMIT
    return Measured(
        [summarize(c.blocks, c.repeats, quiet, steal) for c in candidates],
        summarize(canary.blocks, canary.repeats, quiet, steal),
    )


@contextmanager
def _undisturbed(device: Device) -> Iterator[None]:
    """Without garbage collection, and on as many cores as the device has threads, where the system allows pinning."""
    collecting = gc.isenabled()
    gc.disable()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if 0 < device.threads < len(cores):
        os.sched_setaffinity(0, set(sorted(cores)[-device.threads :]))
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        if collecting:
            gc.enable()


def _cpu_ticks() -> tuple[int, int]:
    """Ticks stolen by the host and ticks in all since boot; zeros where the system does not say."""
    try:
        ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7], sum(ticks)


def _steal(before: tuple[int, int], after: tuple[int, int]) -> float:
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total > 0 else 0.0
