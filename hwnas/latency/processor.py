"""What the machine says of itself: its processor, instruction sets, accelerators, and how much time its host took away.

Part of the agent: standard library only, Python 3.8.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "sve")


def processor() -> str:
    """The processor's own name, or that of the board it sits on."""
    names = _cpuinfo("model name", "Hardware", "Model")
    board = _read("/proc/device-tree/model").strip("\0\n ")
    return (names[0] if names else board) or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """The vector instruction sets that this processor reports, of those that inference uses."""
    flags = " ".join(_cpuinfo("flags", "Features")[:1]).replace("asimd", "neon").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def accelerators() -> list[str]:
    """Names of the NVIDIA GPUs, where their driver's tool says them."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode(errors="replace").splitlines() if done.returncode == 0 else []


def cores() -> list[int]:
    """The cores that this process may run on; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def cpu_ticks() -> tuple[int, int]:
    """Ticks stolen by the host and ticks in all since boot; zeros where the system does not say."""
    try:
        ticks = [int(t) for t in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
        return ticks[7], sum(ticks)
    except (ValueError, IndexError):
        return 0, 0


def interruptions() -> int:
    """How often the scheduler took this process off a core that it wanted to stay on; 0 where the system does not say."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def _cpuinfo(*keys: str) -> list[str]:
    return [line.split(":", 1)[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith(keys)]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
