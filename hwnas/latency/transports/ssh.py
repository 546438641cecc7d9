"""Another machine, through the system's ssh client: its keys, known hosts and configuration count, and no port is opened.

The target needs Python 3.8, numpy and the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from hwnas.latency import transport
from hwnas.latency.transport import Word, shell_words

# These run programs on this machine: a device's description, which may come from elsewhere, must not.
FORBIDDEN = ("proxycommand", "localcommand", "permitlocalcommand", "knownhostscommand", "pkcs11provider", "securitykeyprovider")
REMEDIES = {
    "host key verification failed": "connect once with ssh and check the host's key, or mend known_hosts",
    "permission denied": "set user and identity, or load the key into ssh-agent: no password is asked for",
    "not found": "set python to the target's interpreter",
    "no such file": "set python to the target's interpreter",
}


def _harmless(option: str) -> str:
    if option.split("=")[0].strip().lower() in FORBIDDEN:
        raise ValueError(f"{option.split('=')[0]} runs a program here: set it in ~/.ssh/config")
    return option


Option = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+=[^\n]+$"), AfterValidator(_harmless)]


class Transport(transport.Transport):
    """`host`: a name, an address or one of ~/.ssh/config; `python`: the interpreter there; `options`: as after ssh's -o."""

    kind: str = "ssh"
    host: Word
    user: Word | None = None
    port: int | None = Field(None, ge=1, le=65535)
    identity: Path | None = None
    options: tuple[Option, ...] = ()
    python: Word = "python3"
    folder: Word = "~/.cache/hwnas"

    def command(self, arguments: Sequence[str]) -> list[str]:
        # A silent network is noticed after 15 s; the first value of an option counts, so the device's come first.
        options = [*self.options, "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"]
        command = ["ssh", "-T", "-x", "-a"]
        for option in [*options, "ControlMaster=no", "ClearAllForwardings=yes"]:
            command += ["-o", option]
        if self.port is not None:
            command += ["-p", str(self.port)]
        if self.user is not None:
            command += ["-l", self.user]
        if self.identity is not None:
            command += ["-o", "IdentitiesOnly=yes", "-i", str(self.identity.expanduser())]
        return [*command, "--", self.host, shell_words([self.python, *arguments])]

    def remedy(self, complaint: str) -> str:
        return next((remedy for words, remedy in REMEDIES.items() if words in complaint.lower()), "")
