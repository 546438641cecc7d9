"""How much resident memory some work adds at its peak."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kib(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


def growth_mib(work: Callable[[], Any]) -> float:
    """The peak while it works over what was resident before.

    Not getrusage's maximum, which a process has from the one that started it.
    """
    gc.collect()
    CLEAR.write_text("5")  # the peak begins anew
    before = _kib("VmRSS")
    work()
    return (_kib("VmHWM") - before) / 1024
