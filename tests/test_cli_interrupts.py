"""The command line: interrupted or killed at any moment, it goes on to the same answer."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from command_line import ENVIRONMENT, HERE
from runs import answer, flags


def stopped(folder: Path, profile: Path, moment: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / "fake_device.py", str(moment), name, *flags(folder, profile), *more]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=HERE.parent)


def test_interrupted_it_exits_with_130_and_resume_finishes(call, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "profile", tmp_path / "profile")
    done = stopped(tmp_path / "run", tmp_path / "profile", 9, "SIGINT")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    assert not (tmp_path / "run/report.json").exists()
    code, _, err = call(*flags(tmp_path / "run", tmp_path / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert answer(tmp_path / "run") == answer(undisturbed / "run")


def test_killed_at_a_random_moment_resume_gives_the_same_winner(call, undisturbed, tmp_path):
    shutil.copytree(undisturbed / "profile", tmp_path / "profile")
    moment = random.Random(2).randint(3, 20)
    done = stopped(tmp_path / "run", tmp_path / "profile", moment, "SIGKILL")
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run/report.json").exists()
    code, _, err = call(*flags(tmp_path / "run", tmp_path / "profile"), "--resume")
    assert (code, err) == (0, "")
    assert answer(tmp_path / "run") == answer(undisturbed / "run")
