"""An Android device, through the adb client. The target needs a Python that adb's shell may run, with numpy and the runtime."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.latency import transport
from hwnas.latency.transport import Word, shell_words


class Transport(transport.Transport):
    """`serial`: as `adb devices` lists it; without one, the only device that is connected."""

    kind: str = "adb"
    serial: Word | None = None
    python: Word = "python3"
    folder: Word = "/data/local/tmp/hwnas"

    def command(self, arguments: Sequence[str]) -> list[str]:
        device = [] if self.serial is None else ["-s", self.serial]
        # -T: no terminal, so bytes pass unchanged and standard error stays apart
        return ["adb", *device, "shell", "-T", shell_words([self.python, *arguments])]

    def remedy(self, complaint: str) -> str:
        if "unauthorized" in complaint:
            return "allow debugging on the device's screen"
        if "not found" in complaint and self.python in complaint:
            return "set python to the target's interpreter"
        return "see adb devices"
