"""What tests of several rooms share. Helpers are fixtures that return functions, so that no test imports another."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from hwnas.ir.arch import INPUT, Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.dil_conv import DilConv
from hwnas.ops.identity import Identity
from hwnas.ops.mbconv import MbConv
from hwnas.ops.pool import Pool
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sum import Sum
from hwnas.ops.zero import Zero

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # the networks here are too small for more, and the machine is shared

# The same examples on every machine, and no clock: the tests run on shared cores.
settings.register_profile("hwnas", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hwnas")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The benchmark data, which is not part of the project."""
    folder = Path(os.environ.get("HWNAS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no benchmark data in {folder}")
    return folder


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., dict[str, np.ndarray]]:
    """Weights with nothing neutral in them: biases, scales and running statistics are random too."""

    def make(arch: Arch, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        result = {}
        for name, spec in arch.weights():
            if name.endswith("running_var"):
                value = rng.uniform(0.5, 2.0, spec.shape)
            elif spec.init == "ones":
                value = rng.uniform(0.5, 1.5, spec.shape)
            else:
                value = rng.normal(0, spec.fan_in**-0.5 if spec.init == "kaiming" else 0.3, spec.shape)
            result[name] = value.astype(np.float32)
        return result

    return make


@pytest.fixture(scope="session")
def random_dag() -> Callable[[int], Arch]:
    """Small random networks with branches, dead ends, sums, zeros and identities, of no search space."""

    def make(seed: int) -> Arch:
        rng = random.Random(seed)
        c, side = rng.choice((2, 4)), rng.choice((5, 8))
        names = [INPUT]
        nodes = []
        for i in range(rng.randint(1, 8)):
            op = rng.choice(
                (
                    Sum(),
                    Sum(),
                    Identity(),
                    Zero(),
                    ConvBn(c),
                    ReluConvBn(c),
                    ConvBn(c, 1, act="none"),
                    Pool("max"),
                    Pool("avg"),
                    MbConv(c, 3, 2, se=True),
                    DilConv(c, 3),
                )
            )
            count = rng.randint(1, 3) if isinstance(op, Sum) else 1
            nodes.append(Node(f"n{i}", op, tuple(rng.choice(names) for _ in range(count))))
            names.append(f"n{i}")
        return Arch(TensorSpec((c, side, side)), tuple(nodes), rng.choice(names[-3:]))

    return make


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this test everything that measures does so on a device where nothing takes time."""
    from fake_device import install

    install(monkeypatch.setattr)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile, of `first`, which made the profile, and of `run`. No test may change it."""
    from fake_device import install
    from runs import run

    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        run(folder, "first")
        run(folder)
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A folder with the profile, and no run yet."""
    shutil.copytree(undisturbed / "profile", tmp_path / "profile")
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `hwnas` in this process: exit code, stdout, stderr."""

    from fake_device import install

    import hwnas.cli

    def go(*arguments: object, fake: bool = True) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            if fake:
                install(patch.setattr)
            patch.setattr(sys, "argv", ["hwnas", *map(str, arguments)])
            capsys.readouterr()
            code = 0
            try:
                hwnas.cli.main()
            except SystemExit as stop:
                code = 0 if stop.code is None else stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return go
