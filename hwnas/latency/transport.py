"""Transport: how a Python is started on the target with its standard input and output in our hands.

A file in `latency/transports` defines one subclass, `Transport`, whose fields are the settings of a device's [transport] table.
"""

from __future__ import annotations

import inspect
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from hwnas.errors import UserError
from hwnas.plugins import load

# Words that neither a shell nor a program takes for anything but themselves.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@%+=/~\[\]][A-Za-z0-9_.:@%+=/~\[\]-]*$")]


class Transport(BaseModel, ABC):
    """`folder`: where the target keeps the agent and the models; None for a temporary one on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    folder: Word | None = None

    @abstractmethod
    def command(self, arguments: Sequence[str]) -> list[str]:
        """What to run here so that the target runs Python with these arguments. No shell on this machine reads it."""

    def remedy(self, complaint: str) -> str:
        """What to do about a connection that failed with this on standard error."""
        return ""


def shell_words(words: Sequence[str]) -> str:
    """One command line for the target's shell, which reads every word as it is."""
    return " ".join(shlex.quote(word) if not word.startswith("~/") else word for word in words)


def make_transport(settings: Any) -> Transport:
    """The transport of a device's [transport] table, `kind` its file's name. Pydantic's ValidationError if it is malformed."""
    if isinstance(settings, Transport):
        return settings
    if not isinstance(settings, dict) or not isinstance(settings.get("kind"), str):
        raise UserError("a transport has a kind", got=str(settings), remedy='write kind = "ssh" in the table [transport]')
    plugin = getattr(load("hwnas.latency.transports", settings["kind"], "transport"), "Transport", None)
    if not (inspect.isclass(plugin) and issubclass(plugin, Transport)):
        raise UserError("a transport's module defines Transport, a subclass of it", got=settings["kind"])
    return plugin.model_validate(settings)
