"""Target: a device in use. It keeps a connection to the device's agent, and makes another when that one is lost."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from hwnas.errors import UserError
from hwnas.latency import session
from hwnas.latency.connection import Connection, Lost
from hwnas.latency.device import Device

PAUSES = (0.0, 1.0, 5.0)  # seconds before each try to connect again


@dataclass(frozen=True)
class Round:
    """Milliseconds per inference, a block of each slot; processor ticks meanwhile, and those that the host took away."""

    ms: list[float]
    stolen: int
    ticks: int


class Target:
    """Raises UserError where the device cannot be used as described, Lost where another connection might do."""

    def __init__(self, device: Device, connect: Callable[[Device], Connection] | None = None) -> None:
        self.device = device
        self._connect = connect or _connect
        self._connection: Connection | None = None
        self._fingerprint: dict[str, str] | None = None
        self._seconds: dict[int, float] = {}  # of a block, by slot

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.disconnect()

    def connection(self) -> Connection:
        """The connection, made if there is none. UserError if it cannot be made."""
        if self._connection is None:
            connection = self._connect(self.device)
            try:
                found = connection.ask(
                    self.device.time_limit, do="hello", settings=self.device.settings, cores=self.device.cores
                )["fingerprint"]
            except Lost as lost:
                raise UserError(f"the agent on {self.device.name} cannot be used", got=str(lost)) from None
            except UserError:
                connection.close()
                raise
            if self._fingerprint not in (None, found):
                connection.close()
                raise UserError(f"{self.device.name} changed while it was measured", got=str(found), remedy="measure again")
            self._connection, self._fingerprint = connection, found
        return self._connection

    def reconnect(self) -> None:
        """A fresh connection. UserError if several tries do not get one."""
        self.disconnect()
        for pause in PAUSES:
            time.sleep(pause)
            try:
                self.connection()
                return
            except UserError as error:
                last = error
        raise last

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def fingerprint(self) -> dict[str, str]:
        """What a latency on the device depends on beside the model."""
        self.connection()
        assert self._fingerprint is not None
        return self._fingerprint | self.device.extra_fingerprint

    def open(self, slot: int, model: bytes) -> int:
        """Loads and warms up a model; it is sent if the target does not have it. Returns the runs that make a block.

        Slot 0 comes first: it empties the others.
        """
        digest, limit = hashlib.sha256(model).hexdigest(), self.device.time_limit
        ask = self.connection().ask
        reply = ask(limit, do="open", slot=slot, digest=digest)
        if "missing" in reply:
            ask(limit, model, do="put", digest=digest)
            reply = ask(limit, do="open", slot=slot, digest=digest)
        if "missing" in reply:
            raise Lost("the target does not keep what it is sent")
        self._seconds[slot] = reply["seconds"] * (3 + reply["repeats"])
        return int(reply["repeats"])

    def round(self, slots: Sequence[int]) -> Round:
        """A block of each slot, in this order. A neighbour may slow it down five times before it counts as hung."""
        limit = self.device.time_limit + 5 * sum(self._seconds[slot] for slot in slots)
        return Round(**self.connection().ask(limit, do="round", slots=list(slots)))


def fingerprint(device: Device) -> dict[str, str]:
    """What a latency on a device depends on beside the model. UserError if it cannot be measured on."""
    if device.transport.kind == "local":  # this process is on that machine already
        return session.fingerprint(device) | device.extra_fingerprint
    with Target(device) as target:
        return target.fingerprint


def _connect(device: Device) -> Connection:
    try:
        return Connection(device.transport, device.runtime)
    except Lost as lost:
        raise UserError(
            f"{device.name} cannot be reached by {device.transport.kind}",
            got=str(lost),
            remedy=device.transport.remedy(str(lost)),
        ) from None
