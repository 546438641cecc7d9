"""The agent's parts: frames, cache and what it may be made of."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hwnas
from hwnas.latency.agent import HEADER, Cache, read_frame, write_frame
from hwnas.latency.connection import pack_agent
from hwnas.plugins import known

ROOT = Path(hwnas.__file__).parent.parent
JSON = st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False)))


@given(st.lists(st.tuples(JSON, st.binary(max_size=200)), max_size=5))
def test_frames_come_out_as_they_went_in(frames):
    stream = io.BytesIO()
    for message, blob in frames:
        write_frame(stream, message, blob)
    stream.seek(0)
    assert [read_frame(stream) for _ in frames] == frames
    with pytest.raises(EOFError):
        read_frame(stream)


@given(JSON, st.binary(min_size=1, max_size=50), st.data())
def test_a_frame_that_is_cut_is_the_end(message, blob, data):
    stream = io.BytesIO()
    write_frame(stream, message, blob)
    whole = stream.getvalue()
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(whole[: data.draw(st.integers(0, len(whole) - 1))]))


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n", HEADER.pack(1 << 30, 0), HEADER.pack(2, 0) + b"no", b"\xff" * 99])
def test_what_is_no_frame_is_a_value_error(content):
    with pytest.raises((ValueError, EOFError)):
        read_frame(io.BytesIO(content))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_cache_keeps_what_was_used_last(tmp_path):
    cache = Cache(str(tmp_path), 250)
    models = [bytes([i]) * 100 for i in range(4)]
    for i, model in enumerate(models[:2]):
        cache.put(digest(model), model)
        os.utime(tmp_path / f"model-{digest(model)}", (i, i))
    assert cache.get(digest(models[0])) == models[0]  # used again: the other one is now the oldest
    cache.put(digest(models[2]), models[2])
    assert [cache.get(digest(m)) is not None for m in models] == [True, False, True, False]
    with pytest.raises(OSError, match="damaged"):
        cache.put(digest(models[3]), models[3][:50])


@pytest.mark.parametrize("runtime", known("hwnas.latency.runtimes"))
def test_the_agent_is_one_small_file_that_python_3_8_can_read(runtime):
    content = pack_agent(runtime)
    assert content == pack_agent(runtime)
    assert len(content) < 40_000
    sources = {name: text for name, text in unpacked(content).items() if text.strip()}
    sources["bootstrap"] = (Path(hwnas.__file__).parent / "latency/bootstrap.py").read_text()
    for name, text in sources.items():
        ast.parse(text, name, feature_version=(3, 8))
    packed = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in sources}
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hwnas"):
                assert node.module in packed, (name, node.module)  # what it imports of hwnas, it brings


def unpacked(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as pack:
        return {name: pack.read(name).decode() for name in pack.namelist()}


@pytest.mark.parametrize("end", ["interrupt", "nobody reads", "nobody writes", "error"])
def test_the_agent_ends_whatever_happens(tmp_path, end):
    """An orphan would keep a core of the target busy, and its memory."""
    command = [sys.executable, "-c", "from hwnas.latency.agent import main; main()", str(tmp_path / "cache"), "1000000"]
    agent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a shell, and inherited
    )  # fmt: skip
    try:
        write_frame(agent.stdin, {"do": "nothing that it knows"})
        read_frame(agent.stdout)
        if end == "interrupt":
            agent.send_signal(signal.SIGINT)
        elif end == "nobody reads":
            agent.stdout.close()
            write_frame(agent.stdin, {"do": "nothing that it knows"})
        elif end == "nobody writes":
            agent.stdin.close()
        else:
            write_frame(agent.stdin, {}, b"?")
            write_frame(agent.stdin, {"do": 5})
            agent.stdin.close()
        assert agent.wait(timeout=30) in (0, 1)
    finally:
        agent.kill()
        agent.wait()
        for stream in (agent.stdin, agent.stdout, agent.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
