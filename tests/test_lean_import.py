"""What an import pulls in, and the borders between the floors. Also the linters' own rules, so that `make test` holds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hwnas.kernels.constant import constant

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
HEAVY = ("torch", "onnxruntime", "onnx", "numpy", "scipy", "sklearn", "pydantic", "PIL")


def imported(module: str) -> set[str]:
    script = f"import sys, {module}\nprint(' '.join(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["hwnas", "hwnas.ir.text", "hwnas.ir.simplify", "hwnas.ops", "hwnas.space", "hwnas.spaces", "hwnas.placements"]
)
def test_the_lower_floors_are_the_standard_library(module):
    assert imported(module).isdisjoint(HEAVY)


def test_loading_every_op_and_space_stays_lean():
    script = (
        "import sys\nfrom hwnas.plugins import known, load\n"
        "for p in ('hwnas.ops', 'hwnas.spaces'):\n    for n in known(p):\n        load(p, n, 'x')\n"
        "from hwnas.spaces import make_space\nmake_space('darts').decode\n"
        "print(' '.join(m.partition('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_the_command_line_starts_without_a_framework():
    assert imported("hwnas.cli").isdisjoint(("torch", "onnxruntime", "onnx", "scipy", "sklearn"))


def test_searching_does_not_import_the_compiler():
    script = "import sys, hwnas.compile\nprint('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_constant_is_what_the_compiler_takes_for_one():
    def ours() -> None: ...

    def theirs() -> None: ...

    assert vars(constant(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}


def test_onnxruntime_is_not_needed_to_lower():
    assert "onnxruntime" not in imported("hwnas.lower.onnx")
    assert "torch" not in imported("hwnas.lower.onnx")
    assert {"torch", "onnx", "onnxruntime"}.isdisjoint(imported("hwnas.lower.cost"))
    assert "torch" not in imported("hwnas.latency.profile")


def test_the_floors_of_the_house():
    done = subprocess.run(
        [BIN / "lint-imports", "--no-cache"], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_ruff_and_with_it_no_pickle():
    done = subprocess.run([BIN / "ruff", "check", "--no-cache", "hwnas", "tests"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_ban_on_pickle_bites(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import pickle\n\nimport torch\n\nprint(pickle.loads(b''), torch.load('f'), torch.save({}, 'f'))\n"
    )
    done = subprocess.run(
        [BIN / "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    for banned in ("`pickle` is banned", "`torch.load` is banned", "`torch.save` is banned"):
        assert banned in done.stdout


def test_native_sources_are_free_of_torch():
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    for path in sources:
        includes = [line for line in path.read_text().splitlines() if line.lstrip().startswith("#include")]
        assert not [line for line in includes if any(word in line for word in ("torch", "ATen", "c10"))], path
