"""Connection: a running agent and the frames that go to and fro. The agent travels as one file, checked by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hwnas
from hwnas.errors import UserError
from hwnas.latency.agent import read_frame, write_frame
from hwnas.latency.transport import Transport

AGENT = ("__init__.py", "errors.py", *(f"latency/{n}.py" for n in ("__init__", "agent", "processor", "session")))
START_SECONDS = 60.0
CACHE_BYTES = 2 << 30
COMPLAINT_BYTES = 2000
LINE_BYTES = 1 << 16


class Lost(Exception):  # noqa: N818
    """The connection broke, or the agent did: what was asked might succeed on another connection."""


def pack_agent(runtime: str) -> bytes:
    """The agent with one runtime, as a file that Python runs. The same bytes for the same sources."""
    home = Path(hwnas.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as pack:  # not compressed: a small Python may lack zlib
        for name in (*AGENT, "latency/runtimes/__init__.py", f"latency/runtimes/{runtime}.py"):
            pack.writestr(zipfile.ZipInfo(f"hwnas/{name}"), (home / name).read_bytes())
        pack.writestr(zipfile.ZipInfo("__main__.py"), "from hwnas.latency.agent import main\n\nmain()\n")
    return content.getvalue()


class Connection:
    """An agent, started through a transport. Raises Lost if it cannot be."""

    def __init__(self, transport: Transport, runtime: str, start_seconds: float = START_SECONDS) -> None:
        self._open = contextlib.ExitStack()
        folder = transport.folder or self._open.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-"))
        self._complaints = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        pack = pack_agent(runtime)
        boot = (Path(__file__).parent / "bootstrap.py").read_text()
        arguments = ["-c", boot, folder, hashlib.sha256(pack).hexdigest(), str(len(pack)), str(CACHE_BYTES)]
        try:
            self._process = subprocess.Popen(
                transport.command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints,
                start_new_session=True,  # so that whatever it starts can be ended with it
            )  # fmt: skip
        except OSError as error:
            self._open.close()
            raise Lost(f"{transport.command([])[0]}: {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._open.callback(self._end)
        with self._within(start_seconds):
            while (line := self._out.readline(LINE_BYTES)).strip() != b"hwnas: ready":  # a login shell may say things before
                if not line:
                    raise EOFError
                if line.strip() == b"hwnas: send":
                    self._in.write(pack)
                    self._in.flush()

    def ask(self, seconds: float, blob: bytes = b"", /, **request: Any) -> dict[str, Any]:
        """The answer to a request. UserError if the target refuses it for good, Lost if it fails or takes too long."""
        with self._within(seconds):
            write_frame(self._in, request, blob)
            reply, _ = read_frame(self._out)
        if "refused" in reply:
            raise UserError(reply["refused"])
        if "failed" in reply:
            raise Lost(reply["failed"])
        return reply

    def close(self) -> None:
        """Ends the agent, and this side with it."""
        self._open.close()

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """A time limit, kept by ending the process that we talk through; what breaks is told as Lost."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            yield
        except (EOFError, OSError, ValueError) as error:
            timer.cancel()
            self._end()
            complaint = f"no answer within {seconds:.0f} s" if expired.is_set() else self._complaint(error)
            self.close()
            raise Lost(complaint) from None
        finally:
            timer.cancel()

    def _complaint(self, error: Exception) -> str:
        """The last line on standard error, or that the process ended."""
        self._complaints.seek(0, io.SEEK_END)
        self._complaints.seek(max(0, self._complaints.tell() - COMPLAINT_BYTES))
        lines = [line.strip() for line in self._complaints.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1]
        return f"{error}" if isinstance(error, ValueError) else f"the agent ended (exit status {self._process.returncode})"

    def _end(self) -> None:
        """The agent ends when its input does; the process that carries it is given a moment for that."""
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
