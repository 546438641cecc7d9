"""The agent: what runs on the target. It loads models and times blocks of inferences; what to do next, the host decides.

It is packed with the session, one runtime and nothing else into one small file (hwnas.latency.connection), so that the target
needs Python 3.8, numpy and the runtime. It ends when its standard input does, or after ten minutes without a word.

A frame is two lengths (unsigned, four bytes, big-endian), a JSON object and a blob. A request names what to `do`:

hello   settings, cores                          fingerprint of what runs, after pinning this process
put     digest, and the model as blob            keeps the model in the cache
open    slot, digest                             `missing`, or a session: the seconds of its best run and the runs of a block;
                                                 slot 0 comes first and empties the others
round   slots                                    milliseconds per inference of a block of each, in this order, and stolen ticks

What a model or this machine cannot do is answered by `refused`, what might go well next time by `failed`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import queue
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import IO, Any

from hwnas.errors import UserError
from hwnas.latency.processor import cores, cpu_ticks, interruptions

BLOCK_SECONDS = 1e-3
WARM_UP_SECONDS = 5e-3
WARM_UP_RUNS = 5
UNTIMED = 3
TRIES = 3
UNTIMED_SECONDS = 2e-2
IDLE_SECONDS = 600
TEXT_BYTES, BLOB_BYTES = 1 << 24, 1 << 31
HEADER = struct.Struct(">II")


class Timed:
    """A session, warmed up, and how many runs make a block of at least a millisecond."""

    def __init__(self, run: Callable[[], None], clock: Callable[[], float], interruptions: Callable[[], int]) -> None:
        self._run, self._clock, self._interruptions = run, clock, interruptions
        self.best = self._warm_up()
        self.repeats = max(1, math.ceil(BLOCK_SECONDS / max(self.best, 1e-9)))

    def _warm_up(self) -> float:
        """Runs until enough time and runs have passed and the last run is no faster trend; seconds of the fastest."""
        best, spent, runs = math.inf, 0.0, 0
        improved = True
        while runs < 1000 and (runs < WARM_UP_RUNS or spent < WARM_UP_SECONDS or improved):
            start = self._clock()
            self._run()
            took = self._clock() - start
            improved = took < 0.95 * best
            best, spent, runs = min(best, took), spent + took, runs + 1
        return best

    def block(self) -> float:
        """Milliseconds per inference. A block that the scheduler interrupted is timed again, twice at most."""
        run, clock = self._run, self._clock
        start = clock()
        for _ in range(UNTIMED):  # the others' turns left the caches cold: without this, 24 models cost each 3 to 7 %
            run()
            if clock() - start > UNTIMED_SECONDS:
                break
        for _ in range(TRIES):
            before, start = self._interruptions(), clock()
            for _ in range(self.repeats):
                run()
            took = clock() - start
            if self._interruptions() == before:
                break
        return took * 1e3 / self.repeats


class Cache:
    """Models by the hash of their content, in a folder that keeps the last used ones."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes

    def put(self, digest: str, content: bytes) -> None:
        """OSError if it cannot be written."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise OSError("the model arrived damaged")
        self._make_room(self._limit - len(content))
        aside = os.path.join(self._folder, f".{digest}-{os.getpid()}")
        try:
            with open(aside, "wb") as file:
                file.write(content)
            os.replace(aside, self._path(digest))
        except OSError:
            if os.path.exists(aside):
                os.unlink(aside)
            raise

    def get(self, digest: str) -> bytes | None:
        """None if the cache does not hold it intact."""
        try:
            with open(self._path(digest), "rb") as file:
                content = file.read()
            os.utime(self._path(digest))
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def _path(self, digest: str) -> str:
        return os.path.join(self._folder, "model-" + digest)

    def _make_room(self, limit: int) -> None:
        files = [e for e in os.scandir(self._folder) if e.name.startswith("model-")]
        total = sum(e.stat().st_size for e in files)
        for entry in sorted(files, key=lambda e: e.stat().st_mtime):
            if total <= limit:
                break
            total -= entry.stat().st_size
            os.unlink(entry.path)


class Agent:
    """Answers requests, one after another. `open_session`: loads a model with settings; by default the runtime's."""

    def __init__(
        self,
        cache: Cache,
        open_session: Callable[[bytes, Any], Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        ticks: Callable[[], tuple[int, int]] = cpu_ticks,
        interruptions: Callable[[], int] = interruptions,
    ) -> None:
        self._cache, self._open_session = cache, open_session
        self._clock, self._ticks, self._interruptions = clock, ticks, interruptions
        self._slots: dict[int, Timed] = {}
        self._settings: Any = None

    def answer(self, request: dict[str, Any], blob: bytes) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = getattr(self, "do_" + request.pop("do"))(blob=blob, **request)
            return reply
        except UserError as error:
            return {"refused": str(error)}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"}

    def do_hello(self, settings: dict[str, Any], cores: list[int], blob: bytes) -> dict[str, Any]:
        self._settings = SimpleNamespace(**settings)
        chosen = pin(self._settings.threads, cores, accelerated=not self._settings.provider.startswith("CPU"))
        try:
            from hwnas.latency.session import Session, fingerprint
        except ImportError as error:
            raise UserError(f"{sys.executable} lacks what measuring needs", got=str(error)) from None
        self._open_session = self._open_session or partial(Session, cores=chosen)
        return {"fingerprint": fingerprint(self._settings)}

    def do_put(self, digest: str, blob: bytes) -> dict[str, Any]:
        self._cache.put(digest, blob)
        return {}

    def do_open(self, slot: int, digest: str, blob: bytes) -> dict[str, Any]:
        content = self._cache.get(digest)
        if content is None:
            return {"missing": True}
        if slot == 0:
            self._slots.clear()
        assert self._open_session is not None
        session = self._open_session(content, self._settings)
        timed = self._slots[slot] = Timed(session.run, self._clock, self._interruptions)
        return {"seconds": timed.best, "repeats": timed.repeats}

    def do_round(self, slots: list[int], blob: bytes) -> dict[str, Any]:
        stolen, total = self._ticks()
        milliseconds = [self._slots[slot].block() for slot in slots]
        after = self._ticks()
        return {"ms": milliseconds, "stolen": after[0] - stolen, "ticks": after[1] - total}


def pin(threads: int, wanted: list[int], accelerated: bool) -> list[int]:
    """Keeps this process on these cores; without any, on as many as it has threads, where the system allows it. Returns them.

    UserError if they are not there. A process that drives an accelerator is left free: its driver has threads of its own.
    """
    allowed = cores()
    if wanted and not set(wanted) <= set(allowed):
        raise UserError("the device's cores must be there", got=wanted, remedy=f"available: {allowed}")
    if not allowed or (accelerated and not wanted):
        return []
    chosen = wanted or allowed[-threads:]
    os.sched_setaffinity(0, chosen)
    return chosen


def write_frame(stream: IO[bytes], message: dict[str, Any], blob: bytes = b"") -> None:
    text = json.dumps(message).encode()
    stream.write(HEADER.pack(len(text), len(blob)) + text)
    stream.write(blob)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """The next frame. EOFError at the end of the stream, also within a frame; ValueError if it is none."""
    sizes = HEADER.unpack(_read(stream, HEADER.size))
    if sizes[0] > TEXT_BYTES or sizes[1] > BLOB_BYTES:
        raise ValueError("what came is no frame")
    text, blob = _read(stream, sizes[0]), _read(stream, sizes[1])
    message: dict[str, Any] = json.loads(text)
    return message, blob


def _read(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return content


def serve(folder: str, limit_bytes: int) -> None:
    """Answers what comes in on standard input. Never returns."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the frames
    requests: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                requests.put(read_frame(sys.stdin.buffer))
        finally:
            os._exit(0)  # the host is gone: also amid a run

    gc.disable()  # it would fall into a block, and nothing here needs it
    threading.Thread(target=listen, daemon=True).start()
    agent = Agent(Cache(folder, limit_bytes))
    while True:
        try:
            request, blob = requests.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            os._exit(0)
        write_frame(replies, agent.answer(request, blob), b"")


def main() -> None:
    """`agent <cache folder> <bytes that it may hold>`."""
    try:
        serve(sys.argv[1], int(sys.argv[2]))
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # the host is gone, or is being interrupted too
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # an orderly end would wait for ever for the thread that listens, which holds standard input
