"""Every benchmark that this machine can run, one after another, results saved: `make bench`."""

from __future__ import annotations

import subprocess
import sys

import torch

for benchmark in (
    ["latency_predictor", "--space", "mobilenet"],
    ["latency_predictor", "--space", "nasbench201"],
    ["additive_predict"],
    ["candidate_evaluation", "--device", "cuda" if torch.cuda.is_available() else "cpu"],
    ["supernet_step", "--device", "cuda" if torch.cuda.is_available() else "cpu"],
):
    subprocess.run([sys.executable, "-m", f"benchmarks.{benchmark[0]}", *benchmark[1:], "--save"], check=True)
