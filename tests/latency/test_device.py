"""device.toml: what it says, what it may not say, and each complaint on one line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hwnas.errors import UserError
from hwnas.latency.device import Device, known_devices, load_device

ROOT = Path(__file__).parents[2]


def written(folder: Path, content: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "device.toml").write_text(content)
    return str(folder)


def test_devices_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "latency_models" / "mine"
    folder.mkdir(parents=True)
    (folder / "device.toml").write_text('description = "d"\nthreads = 3\n')
    device = load_device("mine")
    assert (device.name, device.threads, device.provider) == ("mine", 3, "CPUExecutionProvider")
    assert (device.transport.kind, device.runtime, device.precision, device.cores) == ("local", "onnxruntime", "fp32", ())
    assert load_device(str(folder)) == device
    assert known_devices()["mine"].samefile(folder / "device.toml")


def test_every_device_of_the_project_loads():
    names = [path.parent.name for path in (ROOT / "latency_models").glob("*/device.toml")]
    assert len(names) >= 6
    for name in names:
        device = load_device(name)
        assert device.name == name
        assert device.description


def test_a_description_says_everything(tmp_path):
    text = """
provider = "CUDAExecutionProvider"
provider_options = { enable_cuda_graph = "1" }
threads = 2
cores = [4, 5]
precision = "int8"
optimization = "extended"
spinning = false
time_limit = 90
[transport]
kind = "ssh"
host = "jetson.local"
user = "nvidia"
port = 2222
identity = "~/.ssh/jetson"
options = ["ProxyJump=gate", "Compression=no"]
python = "~/venv/bin/python"
folder = "/mnt/nvme/hwnas"
"""
    device = load_device(written(tmp_path / "jetson", text))
    command = device.transport.command(["-c", "print('it works; $HOME')", "/mnt/nvme/hwnas"])
    assert command[0] == "ssh"
    assert command[-2] == "jetson.local"
    assert command[-3] == "--"
    assert shlex.split(command[-1]) == ["~/venv/bin/python", "-c", "print('it works; $HOME')", "/mnt/nvme/hwnas"]
    words = " ".join(command)
    assert "-l nvidia" in words
    assert "-p 2222" in words
    assert f"-i {Path.home()}/.ssh/jetson" in words
    assert words.index("ProxyJump=gate") < words.index("BatchMode=yes")  # ssh takes the first value of an option
    assert device.extra_fingerprint == {"cores": "4 5", "precision": "int8"}
    assert device.model_validate(device.model_dump()) == device


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("threads = ", "Invalid value"),
        ("threads = 0", "threads"),
        ("threads = 'two'", "threads"),
        ("size = 3", "size"),
        ("optimization = 'most'", "optimization"),
        ("[threads]\na = 1", "threads"),
        ("\x00", ""),
        ("name = 3", "name"),
        ("precision = 'fp8'", "precision"),
        ("threads = 2\ncores = [1]", "a different core for each of the 2 threads"),
        ("threads = 2\ncores = [1, 1]", "a different core"),
        ("cores = [-1]", "cores.0"),
        ("time_limit = 0", "time_limit"),
        ("time_limit = inf", "time_limit"),
        ("runtime = '../evil'", "runtime"),
        ("transport = 'ssh'", 'kind = "ssh"'),
        ("[transport]\nhost = 'pi'", 'kind = "ssh"'),
        ("[transport]\nkind = 'telnet'", "known: adb, local, ssh"),
        ("[transport]\nkind = 'ssh'", "transport.host"),
        ("[transport]\nkind = 'ssh'\nhost = ''", "transport.host"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\nport = 70000", "transport.port"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\npassword = 'x'", "transport.password"),
        ("[transport]\nkind = 'ssh'\nhost = '-oProxyCommand=sh'", "transport.host"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi; reboot'", "transport.host"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\npython = 'python3; reboot'", "transport.python"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\npython = '$(reboot)'", "transport.python"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\nfolder = '-rf'", "transport.folder"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\noptions = ['-v']", "transport.options.0"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\noptions = ['ProxyCommand=sh']", "~/.ssh/config"),
        ("[transport]\nkind = 'ssh'\nhost = 'pi'\noptions = ['localCommand=sh']", "~/.ssh/config"),
        ("[transport]\nkind = 'adb'\nserial = '`reboot`'", "transport.serial"),
        ("[transport]\nkind = 'local'\nhost = 'pi'", "transport.host"),
    ],
)
def test_malformed_devices_are_refused(tmp_path, content, part):
    with pytest.raises(UserError) as caught:
        load_device(written(tmp_path / "broken", content))
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)


def test_a_device_file_that_is_not_text(tmp_path):
    (tmp_path / "device.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError):
        load_device(str(tmp_path))


def test_an_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"nosuch.*known: .*cpu"):
        load_device("nosuch")


def test_a_device_is_made_in_python_too():
    assert Device(name="d") == Device(name="d", transport={"kind": "local"})
    assert Device(name="d", transport={"kind": "adb"}).transport.command(["-c", "x"])[:3] == ["adb", "shell", "-T"]
