"""Device: where a number was measured, and what it takes to measure there again.

A device is a folder `latency_models/<name>/` with a hand-written `device.toml`; its profile lies beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

import hwnas
from hwnas.errors import UserError
from hwnas.latency.session import Optimization, Settings
from hwnas.latency.transport import Transport, make_transport

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path("latency_models")
LOCAL = {"kind": "local"}


class Device(BaseModel):
    """A machine, how to reach it, and how models run there: runtime, execution provider, threads, cores and precision.

    `threads`: those inside an operator. `cores`: those to run on; without them as many as threads. `precision`: int8 models are
    quantised before they are measured. `time_limit`: seconds for any one step, beyond what the model itself takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    transport: Annotated[SerializeAsAny[Transport], BeforeValidator(make_transport)] = Field(
        default=LOCAL, validate_default=True
    )
    runtime: str = Field(default="onnxruntime", pattern=r"^[a-z]\w*$")
    provider: str = "CPUExecutionProvider"
    provider_options: dict[str, str] = Field(default_factory=dict)
    threads: int = Field(default=1, ge=1)
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    precision: Literal["fp32", "int8"] = "fp32"
    spinning: bool = True
    optimization: Optimization = "all"
    time_limit: float = Field(default=60.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _a_core_for_every_thread(self) -> Device:
        if len(set(self.cores)) < len(self.cores) or 0 < len(self.cores) < self.threads:
            raise ValueError(f"cores names a different core for each of the {self.threads} threads")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What the session on the target is told."""
        return {name: getattr(self, name) for name in Settings.__annotations__}

    @property
    def extra_fingerprint(self) -> dict[str, str]:
        """What a latency depends on that the session does not know; defaults are left out."""
        cores = {"cores": " ".join(map(str, self.cores))} if self.cores else {}
        return cores | ({} if self.precision == "fp32" else {"precision": self.precision})


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
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} must describe a device: {where}: {first['msg'].removeprefix('Value error, ')}", got=str(first["input"]),
            remedy="see latency_models/cpu/device.toml",
        ) from None  # fmt: skip
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must describe a device: {error}", remedy="see latency_models/cpu/device.toml") from None
