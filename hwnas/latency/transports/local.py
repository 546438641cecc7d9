"""This machine, in a process of its own: a crash of the runtime is a failed measurement, not the end of the search."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hwnas.latency import transport


class Transport(transport.Transport):
    kind: str = "local"

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, *arguments]
