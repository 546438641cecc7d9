"""A small main job on the fake device: what compile_network is called with by the tests of compile, the CLI and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from hwnas.compile import compile_network
from hwnas.report.run import Report
from hwnas.space import Space
from hwnas.spaces import make_space

SPACE = "mobilenet(stages=((8,2,2),),stem=8,first=8,head=16,kernels=(3,5),expansions=(3,),depths=(1,2),widths=(1.0,2.0))"
BUDGET = "0.06ms"  # of 0.044 to 0.099
FILES = {
    "config.json", "profile.jsonl", "supernet.safetensors", "history.jsonl", "finalists.jsonl", "phases.jsonl", "arch.txt",
    "weights.safetensors", "model.onnx", "report.json",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "strategy": "evolution(population=4, sample=2)",
    "evaluations": 10,
    "supernet_epochs": 2,
    "epochs": 2,
    "limit": 120,
}


class Boom(BaseException):
    """As a kill would be: nothing in hwnas catches it."""


def boom() -> None:
    raise Boom


def small_space() -> Space:
    return make_space(SPACE, input=(1, 8, 8), classes=10)


def run(folder: Path, name: str = "run", **arguments: Any) -> Report:
    """A run in `folder/name`, with the profile that all runs of `folder` share."""
    given = {"space": SPACE, "data": "digits", "device": "cpu", "budget": BUDGET, "profile": folder / "profile", **SMALL}
    return compile_network(**{**given, **arguments}, out=folder / name)


def flags(out: Path, profile: Path, **changes: Any) -> list[str]:
    """The same run as arguments of `hwnas search`; None leaves one out."""
    fixed = {"space": SPACE, "data": "digits", "device": "cpu", "budget": BUDGET, "profile": profile}
    given = {**fixed, **SMALL, "out": out, **changes}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    return ["search", *(part for pair in pairs for part in pair)]


def answer(path: Path) -> tuple[Any, ...]:
    """What must not depend on interruptions: the report but for times, the rows, the weights, the model."""
    report = json.loads((path / "report.json").read_text())
    del report["seconds"]
    weights, supernet = (
        {name: value.tobytes() for name, value in sorted(load_file(file).items())} if file.exists() else None
        for file in (path / "weights.safetensors", path / "supernet.safetensors")
    )
    texts = [(path / name).read_text() for name in ("arch.txt", "history.jsonl", "finalists.jsonl", "config.json")]
    return report, texts, weights, supernet, (path / "model.onnx").read_bytes()


def all_finite(path: Path) -> bool:
    return all(bool(np.isfinite(value).all()) for value in load_file(path / "weights.safetensors").values())
