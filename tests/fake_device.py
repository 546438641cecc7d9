"""A device on which nothing takes time: a network's latency is linear in its multiply-accumulates, and always the same.

Run as a program it is the command line on that device, and can be told to stop itself at a given moment:
`python fake_device.py <moment> <signal> search ...`; moment 0 never comes. A moment is a step of training or a write.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import SGD

import hwnas.compile.phases
import hwnas.compile.prediction
import hwnas.compile.run
import hwnas.latency.measure
import hwnas.latency.sweep
import hwnas.report.run
import hwnas.storage
import hwnas.supernet.checkpoint
from hwnas.ir.arch import Arch
from hwnas.latency.device import Device
from hwnas.latency.measure import Measured, summarize
from hwnas.lower.cost import cost
from hwnas.lower.onnx import arch_text
from hwnas.ops import read_arch

Set = Callable[[Any, str, Any], None]
CALL_MS, MS_PER_MAC = 0.01, 1e-6


def latency_ms(arch: Arch) -> float:
    return CALL_MS + MS_PER_MAC * cost(arch).macs


def measure(models: Sequence[bytes], device: Device, **arguments: Any) -> Measured:
    """In the place of hwnas.latency.measure.measure."""
    found = [summarize([latency_ms(read_arch(arch_text(m)))] * 3, 1, True, 0.0) for m in models]
    arguments.get("progress", lambda share: None)(1.0)
    return Measured(found, summarize([0.2] * 3, 1, True, 0.0))


def slowed(factor: Callable[[Arch, int], float]) -> Callable[..., Measured]:
    """A device that is slower than its profile said: by `factor` of an arch and of how many are measured together."""

    def slow(models: Sequence[bytes], device: Device, **arguments: Any) -> Measured:
        found = measure(models, device, **arguments)
        factors = [factor(read_arch(arch_text(model)), len(models)) for model in models]
        times = [summarize([m.latency_ms * f] * 3, 1, True, 0.0) for m, f in zip(found.models, factors, strict=True)]
        return Measured(times, found.canary)

    return slow


def install(setter: Set, instead: Callable[..., Measured] = measure) -> None:
    """Everything that measures does so on this device."""
    for module in (hwnas.compile.run, hwnas.latency.sweep, hwnas.latency.measure):
        setter(module, "measure", instead)


def at_moments(setter: Set, tick: Callable[[], None]) -> None:
    """Calls `tick` before every step of training, every whole write and every row of a journal."""

    def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tick()
            return function(*args, **kwargs)

        return wrapped

    setter(SGD, "step", ticking(SGD.step))
    setter(hwnas.storage.Journal, "append", ticking(hwnas.storage.Journal.append))
    write = ticking(hwnas.storage.write_file)
    for module in (
        hwnas.storage, hwnas.compile.phases, hwnas.compile.prediction, hwnas.report.run, hwnas.supernet.checkpoint,
    ):  # fmt: skip
        setter(module, "write_file", write)


def at_moment(setter: Set, moment: int, act: Callable[[], None]) -> None:
    """Acts at one of these moments, counted from 1."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            act()

    at_moments(setter, tick)


def main() -> None:
    moment, number, *arguments = sys.argv[1:]
    # Whoever was started in the background of a shell ignores SIGINT, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install(setattr)
    at_moment(setattr, int(moment), lambda: os.kill(os.getpid(), signal.Signals[number]))
    sys.argv = ["hwnas", *arguments]
    from hwnas.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
