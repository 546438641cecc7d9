"""A connection to an agent in this process, with a clock, sessions and stolen time that the test controls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from hwnas.errors import UserError
from hwnas.latency.agent import Agent
from hwnas.latency.connection import Lost
from hwnas.latency.device import Device
from hwnas.latency.target import Target

HERE = Device(name="here")


class Memory(dict[str, bytes]):
    """The agent's cache, without a disk."""

    def put(self, digest: str, content: bytes) -> None:
        assert hashlib.sha256(content).hexdigest() == digest
        self[digest] = content


class World:
    """Models whose runs take what `cost(model, run number, time)` says, in seconds, and nothing else takes any time.

    `trouble(world, request)` is called before each request and may raise Lost; `connections` counts those that were made.
    """

    def __init__(
        self,
        cost: Callable[[bytes, int, float], float],
        steal: Callable[[float], tuple[int, int]] = lambda now: (0, 0),
        trouble: Callable[[World, dict[str, Any]], None] = lambda world, request: None,
    ) -> None:
        self.now, self.cost, self.steal, self.trouble = 100.0, cost, steal, trouble
        self.runs: dict[bytes, int] = {}
        self.order: list[bytes] = []
        self.cache = Memory()
        self.connections = self.interruptions = 0
        self.asked: list[dict[str, Any]] = []

    def target(self, device: Device = HERE) -> Target:
        return Target(device, self.connect)

    def connect(self, device: Device) -> Wire:
        self.connections += 1
        return Wire(self)

    def session(self, model: bytes, settings: object) -> object:
        world = self

        class Session:
            def run(self) -> None:
                number = world.runs.get(model, 0)
                world.runs[model] = number + 1
                world.order.append(model)
                world.now += world.cost(model, number, world.now)

        return Session()


class Wire:
    def __init__(self, world: World) -> None:
        self.world = world
        self.agent = Agent(
            world.cache, world.session, lambda: world.now, lambda: world.steal(world.now), lambda: world.interruptions
        )  # type: ignore[arg-type]  # fmt: skip
        self.open = True

    def ask(self, seconds: float, blob: bytes = b"", /, **request: Any) -> dict[str, Any]:
        assert self.open, "a connection that was closed is used"
        self.world.asked.append(request)
        self.world.trouble(self.world, request)
        reply = {"fingerprint": {}} if request["do"] == "hello" else self.agent.answer(dict(request), blob)
        if "refused" in reply:
            raise UserError(reply["refused"])
        if "failed" in reply:
            raise Lost(reply["failed"])
        return reply

    def close(self) -> None:
        self.open = False
