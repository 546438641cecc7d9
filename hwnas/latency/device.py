"""Device: where a number was measured, and what it takes to measure there again.

A device is a folder `latency_models/<name>/` with a hand-written `device.toml`; its profile lies beside it.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import hwnas
from hwnas.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path("latency_models")
INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "sve")


class Device(BaseModel):
    """An execution provider of ONNX Runtime and how to run it. `threads` are those inside an operator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    provider: str = "CPUExecutionProvider"
    provider_options: dict[str, str] = Field(default_factory=dict)
    threads: int = Field(1, ge=1)
    spinning: bool = True
    optimization: Literal["disabled", "basic", "extended", "all"] = "all"


def device_folders() -> list[Path]:
    """Where devices are looked for: the working directory first, then what the package brings."""
    package = Path(hwnas.__file__).parent
    return [folder for folder in (FOLDER, package / "latency_models", package.parent / "latency_models") if folder.is_dir()]


def known_devices() -> dict[str, Path]:
    """Every device's name and its `device.toml`."""
    found: dict[str, Path] = {}
    for folder in device_folders():
        for path in sorted(folder.glob("*/device.toml")):
            found.setdefault(path.parent.name, path)
    return found


def load_device(name: str) -> Device:
    """The device of that name, or of that folder with a `device.toml`. UserError if there is none or it is malformed."""
    devices = known_devices()
    path = devices.get(name, Path(name) / "device.toml")
    if not path.is_file():
        raise UserError("unknown device", got=name, remedy=f"known: {', '.join(devices)}, or a folder that holds a device.toml")
    try:
        return Device.model_validate({"name": path.resolve().parent.name, **tomllib.loads(path.read_text())})
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} must describe a device: {reason}", remedy="see latency_models/cpu/device.toml") from None


def processor() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return names[0] if names else platform.machine()


def instruction_sets() -> list[str]:
    """The vector instruction sets that this processor reports, of those that inference uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTION_SETS if name in flags]
