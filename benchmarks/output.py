"""output: what benchmarks print, one JSON object a line and one figure each, kept in benchmarks/results when that is wanted."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Output:
    """Rows of a benchmark: `case, metric, value, unit, baseline, baseline_value, ratio, spread`, and what else they say.

    file: in which they are kept if `save`, by default the benchmark's name. facts: what every row says, such as the device; the
    date is added.
    """

    def __init__(self, benchmark: str, save: bool, file: str = "", **facts: object) -> None:
        self.benchmark, self.save, self.facts = benchmark, save, facts
        self.path = RESULTS / f"{file or benchmark}.jsonl"

    def write(self, row: Mapping[str, object]) -> None:
        date = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
        line = json.dumps({"benchmark": self.benchmark, **row, **self.facts, "date": date})
        print(line, flush=True)
        if self.save:
            RESULTS.mkdir(exist_ok=True)
            with self.path.open("a") as file:
                file.write(line + "\n")


def add_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results with device and date")


def device_name(device: str) -> str:
    """The GPU, or the processor with the threads and instructions that PyTorch uses. Ends the program if there is no GPU."""
    import torch  # not every benchmark needs it

    if device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("error: PyTorch must see the device; got cuda; run with --device cpu, or where a GPU is")
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].split(":")[1].strip() if models else platform.processor()
    return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
