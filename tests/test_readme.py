"""The README's example runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_is_short(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    shutil.copytree(
        ROOT / "latency_models" / "cpu", tmp_path / "latency_models" / "cpu", ignore=shutil.ignore_patterns("*.jsonl")
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"0\.\d+ ms, \d+\.\d%, kept: True\n", result.stdout)
    assert "head = classifier(" in result.stdout
    assert (tmp_path / "runs/readme/model.onnx").is_file()


def test_commands_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    shown = subprocess.run([sys.executable, "-m", "hwnas.cli", "--help"], capture_output=True, text=True, check=True).stdout
    for command in set(re.findall(r"^hwnas (\w+)", README, re.MULTILINE)):
        assert f" {command} " in shown
