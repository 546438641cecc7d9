"""Every transport against a real agent process: here, behind a real sshd on loopback, and behind a stand-in for adb."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hwnas.errors import UserError
from hwnas.latency import sweep as sweep_module
from hwnas.latency.connection import Connection
from hwnas.latency.device import Device
from hwnas.latency.measure import Failure, canary_model, measure
from hwnas.latency.profile import Profile
from hwnas.latency.session import fingerprint as here
from hwnas.latency.sweep import profile_space
from hwnas.latency.target import Target, fingerprint
from hwnas.placements import placed_ops
from hwnas.plugins import known
from hwnas.spaces import make_space

SPACE = make_space("chain(input=(4,), classes=2, kind='dense', layers=2, widths=(2, 3), activations=('relu',))")
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/user_key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
StrictModes no
UsePAM no
"""


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def processes(word: str) -> list[int]:
    """Processes with this word among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in arguments:
            found.append(int(path.parent.name))
    return found


def none_left(word: str) -> bool:
    deadline = time.monotonic() + 10
    while processes(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes(word)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """The [transport] table for a server of this user's own, with keys and a port of its own."""
    if not SSHD or not shutil.which("ssh-keygen"):
        pytest.skip("no sshd on this machine: apt-get install openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server of root's locks itself in
    for name in ("host_key", "user_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    for name in ("host_key", "other_key"):
        key = (folder / f"{name}.pub").read_text()
        (folder / f"known_{name}").write_text(f"[127.0.0.1]:{port} {key}")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        options = [f"UserKnownHostsFile={folder}/known_host_key", "StrictHostKeyChecking=yes", "GlobalKnownHostsFile=none"]
        yield {
            "kind": "ssh", "host": "127.0.0.1", "port": port, "identity": str(folder / "user_key"), "options": options,
            "python": sys.executable,
        }  # fmt: skip
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def adb(tmp_path, monkeypatch) -> dict[str, Any]:
    """The [transport] table for a stand-in for adb that knows one device: this machine."""
    (tmp_path / "bin").mkdir()
    script = """
[ "$1" = -s ] || { echo "error: more than one device" >&2; exit 1; }
[ "$2" = emulator-5554 ] || { echo "adb: device '$2' not found" >&2; exit 1; }
[ "$3 $4" = "shell -T" ] && [ $# = 5 ] || { echo "usage" >&2; exit 1; }
exec sh -c "$5"
"""
    program(tmp_path / "bin/adb", script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return {"kind": "adb", "serial": "emulator-5554", "python": sys.executable}


@pytest.fixture
def device(request, tmp_path, monkeypatch) -> Callable[..., Device]:
    """A device behind a transport, with a folder of its own, and changes to its [transport] table or its fields."""
    monkeypatch.setattr("hwnas.latency.target.PAUSES", (0, 0.3, 1))

    def make(kind: str, transport: dict[str, Any] | None = None, **fields: Any) -> Device:
        table = {"kind": "local"} if kind == "local" else request.getfixturevalue({"ssh": "sshd"}.get(kind, kind))
        return Device(name="there", transport={**table, "folder": str(tmp_path / "cache"), **(transport or {})}, **fields)

    return make


def folder(device: Device) -> str:
    assert device.transport.folder
    return device.transport.folder


KINDS = known("hwnas.latency.transports")


def test_every_transport_is_tested():
    assert set(KINDS) == {"local", "ssh", "adb"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_sent_once_and_the_agent_goes_when_it_is_done(device, kind):
    there = device(kind)
    assert fingerprint(there) == here(there)
    with Target(there) as target:
        for _ in range(2):
            found = measure([canary_model()], there, seconds=0.1, min_rounds=3, target=target)
            assert found.models[0].latency_ms > 0
            assert found.models[0].blocks >= 3
        cached = sorted(path.name for path in Path(folder(there)).iterdir())
        assert len(processes(folder(there))) >= 1
    assert none_left(folder(there))
    assert [name.split("-")[0] for name in cached] == ["agent", "model"]
    stamps = {path.name: path.stat().st_ino for path in Path(folder(there)).iterdir()}
    measure([canary_model()], there, seconds=0.1, min_rounds=3)
    assert {path.name: path.stat().st_ino for path in Path(folder(there)).iterdir()} == stamps  # nothing was written again


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_through_three_killed_connections(device, kind, tmp_path, monkeypatch):
    """At random moments amid rounds everything that carries the connection, or the agent alone, is killed."""
    there = device(kind)
    monkeypatch.setattr(sweep_module, "LEAST_SECONDS", 0.2)
    monkeypatch.setattr(sweep_module, "SWEEPS", 2)
    rng, rounds, killed = Random(kind), [0], []
    moments = sorted(rng.sample(range(4, 40), 3))
    ask = Connection.ask

    def dangerous(self: Connection, seconds: float, blob: bytes = b"", /, **request: Any) -> dict[str, Any]:
        rounds[0] += request["do"] == "round"
        if request["do"] == "round" and rounds[0] in moments:
            victims = processes(folder(there))
            killed.append(victims if len(killed) % 2 else victims[-1:])
            threading.Timer(rng.uniform(0, 0.01), lambda: [os.kill(pid, signal.SIGKILL) for pid in killed[-1]]).start()
            time.sleep(0.02)
        return ask(self, seconds, blob, **request)

    monkeypatch.setattr(Connection, "ask", dangerous)
    profile = Profile.open(tmp_path / "p.jsonl", there)
    coverage = profile_space(profile, there, SPACE, networks=3, seconds_per_arch=0.01)
    assert len(killed) == 3
    assert coverage.measured == coverage.total == 1 + 3 + len(placed_ops(SPACE))
    assert profile.failures() == {}
    lines = (tmp_path / "p.jsonl").read_text().splitlines()[1:]
    visits = Counter((v.kind, v.arch, v.turn) for kind in ("empty", "network", "op") for v in profile.visits(kind))
    assert len(lines) == len(visits) == 2 * coverage.total  # each turn of each, and none twice
    assert none_left(folder(there))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_that_hangs_is_given_up_after_the_time_limit(device, kind):
    there = device(kind, time_limit=1.0)
    with Target(there) as target:
        target.open(0, canary_model())
        agent = processes(folder(there))[-1]
        os.kill(agent, signal.SIGSTOP)
        found = measure([canary_model()], there, seconds=0.1, min_rounds=3, target=target)
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent, signal.SIGCONT)
        assert found.models[0].blocks >= 3
    assert none_left(folder(there))


@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_a_full_disk_is_a_failure_with_its_reason(device, kind, tmp_path):
    """The target may write files of 5 MB: the agent and the reference model fit, the model does not."""
    python = program(tmp_path / "python", f'ulimit -f 10000\nexec "{sys.executable}" "$@"')
    there = device(kind, {"python": python})
    large = make_space("chain(input=(1500,), classes=2, kind='dense', layers=1, widths=(1500,), activations=('relu',))")
    from hwnas.lower.onnx import to_onnx
    from hwnas.lower.weights import init_weights

    arch = large.decode(large.sample(Random(0)))
    model = to_onnx(arch, init_weights(arch)).SerializeToString()
    found = measure([model, canary_model()], there, seconds=0.1, min_rounds=3)
    bad, good = found.outcomes
    assert isinstance(bad, Failure)
    assert "File too large" in bad.reason
    assert not isinstance(good, Failure)
    assert not [p for p in Path(folder(there)).iterdir() if p.name.startswith(".")]  # no torn file is left
    python = program(tmp_path / "python", f'ulimit -f 2\nexec "{sys.executable}" "$@"')
    shutil.rmtree(folder(there))
    with pytest.raises(UserError, match=r"cannot be reached by .*File too large"):
        measure([model], there)


def refused(device: Device) -> str:
    with pytest.raises(UserError) as caught:
        measure([canary_model()], device, seconds=0.1)
    with pytest.raises(UserError) as again:
        fingerprint(device)
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert none_left(folder(device))
    return str(caught.value)


def test_a_host_key_that_is_not_the_known_one(device, sshd):
    options = [option.replace("known_host_key", "known_other_key") for option in sshd["options"]]
    message = refused(device("ssh", {"options": options}))
    assert "Host key verification failed" in message
    assert "known_hosts" in message


def test_a_user_key_that_is_not_allowed(device, sshd):
    message = refused(device("ssh", {"identity": sshd["identity"].replace("user_key", "other_key")}))
    assert "Permission denied" in message
    assert "identity" in message


def test_a_port_on_which_nobody_listens(device, sshd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "Connection refused" in refused(device("ssh", {"port": free.getsockname()[1]}))


@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_a_python_that_is_not_there(device, kind):
    message = refused(device(kind, {"python": "/nowhere/python3"}))
    assert "/nowhere/python3" in message
    assert "not found" in message or "No such file" in message
    assert "set python" in message


@pytest.mark.parametrize("missing", ["numpy", "onnxruntime"])
@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_a_python_without_what_is_needed(device, kind, missing, tmp_path):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')\n")
    python = program(tmp_path / "python", f'PYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"')
    assert f"No module named '{missing}'" in refused(device(kind, {"python": python}))


@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_a_login_shell_that_talks_does_no_harm(device, kind, tmp_path):
    python = program(tmp_path / "python", f'echo "Welcome to your Pi"\necho "disk 93 % full" >&2\nexec "{sys.executable}" "$@"')
    there = device(kind, {"python": python})
    assert measure([canary_model()], there, seconds=0.1, min_rounds=3).models[0].latency_ms > 0


@pytest.mark.parametrize("text", ["exit 3", *(f"echo hwnas: ready; {end}" for end in ("exit 0", "cat /bin/sh", "yes"))])
def test_what_is_no_agent_is_refused(device, text, tmp_path):
    message = refused(device("adb", {"python": program(tmp_path / "python", text)}, time_limit=5))
    assert "there" in message


def test_a_client_that_is_not_installed(device, monkeypatch, adb, tmp_path):
    there = device("adb")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "adb: No such file" in refused(there)


def test_an_adb_device_that_is_not_connected(device):
    message = refused(device("adb", {"serial": "R58M123"}))
    assert "device 'R58M123' not found" in message
    assert "adb devices" in message


def test_a_damaged_agent_is_sent_again(device, tmp_path):
    there = device("local")
    first = fingerprint(there.model_copy(update={"name": "x"}))
    with Target(there) as target:
        assert target.fingerprint == first
    (agent,) = Path(folder(there)).glob("agent-*.pyz")
    whole = agent.read_bytes()
    agent.write_bytes(whole[:-100])
    with Target(there) as target:
        assert target.fingerprint == first
    assert agent.read_bytes() == whole


def test_a_damaged_model_is_sent_again(device):
    there = device("local")
    measure([canary_model()], there, seconds=0.1, min_rounds=3)
    (model,) = Path(folder(there)).glob("model-*")
    model.write_bytes(b"torn")
    measure([canary_model()], there, seconds=0.1, min_rounds=3)
    assert model.read_bytes() == canary_model()


def test_cores_are_pinned(device):
    core = max(os.sched_getaffinity(0))
    there = device("local", cores=(core,))
    with Target(there) as target:
        found = target.fingerprint
        (agent,) = processes(folder(there))
        assert os.sched_getaffinity(agent) == {core}
    assert found == {**here(there), "cores": str(core)}
    assert "available" in refused_cores(device("local", cores=(4095,)))


def refused_cores(device: Device) -> str:
    with pytest.raises(UserError, match="cores") as caught:
        measure([canary_model()], device, seconds=0.1)
    return str(caught.value)
