"""The run folder: what a run was asked (`config.json`), what it found (`report.json`), and where everything lies.

config.json           the question; `--resume` must ask the same
profile.jsonl         the measurements that latencies are predicted from
supernet.safetensors  checkpoint of the shared weights, where the evaluator needs them
history.jsonl         every evaluated architecture
finalists.jsonl       measurements of the best predicted ones
phases.jsonl          wall time of each phase that ended
arch.txt  weights.safetensors  model.onnx  report.json      the answer
model_float32.onnx    where model.onnx is quantised for the device: what it was made of
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.numpy import load as load_safetensors

from hwnas.errors import UserError
from hwnas.latency.measure import Measurement
from hwnas.lower.weights import Weights
from hwnas.storage import write_file

Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """What a run is asked. Two runs of one config find the same winner, up to the noise of measuring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str
    space_fingerprint: str
    data: str
    data_fingerprint: str
    size: int | None
    limit: int | None
    device: str
    budget: dict[str, float]
    strategy: str
    predictor: str
    evaluator: str = "supernet"
    training: dict[str, list[float]] = {}  # hyper-parameters that are searched too, with their options
    judge: str = "quiet"  # what of a measured latency the budget limits: quiet, or p90
    evaluations: int
    batch: int = 1
    threads: int = 1
    supernet_epochs: int
    sampling: str
    epochs: int
    inherit: bool
    seed: int
    prior: list[list[int]] = []  # genotypes that a warm start tries first


class Predicted(BaseModel):
    """Predicted latency with its interval, and the predictor's leave-one-out error beside the retest error."""

    latency_ms: float
    low_ms: float
    high_ms: float
    predictor: str
    networks: int
    mape: float
    within_5_percent: float | None = None
    within_10_percent: float
    spearman: float | None
    retest_error: float | None
    coverage: float | None = None


class Quality(BaseModel):
    """On one split."""

    accuracy: float
    macro_f1: float
    loss: float


class Attempt(BaseModel):
    """A finalist: what it was predicted and measured to take, and by what share it exceeds the budget (0 within)."""

    key: str
    genotype: list[int]
    search_accuracy: float
    predicted_ms: float | None
    measured_ms: float
    exceeds_by: float


class Input(BaseModel):
    """What the model is fed: (pixel - mean) / std per channel, in the units in which the data are stored; and its classes."""

    dims: list[int]
    mean: list[float]
    std: list[float]
    classes: list[str]


class Tradeoff(BaseModel):
    """An evaluated architecture that none within the budget beats in both accuracy and cost, both as the search saw them."""

    key: str
    genotype: list[int]
    search_accuracy: float
    metrics: dict[str, float]


class Report(BaseModel):
    """The answer. `succeeded`: measured within the budget. `seconds` per phase, over all the processes that the run took."""

    succeeded: bool
    config: Config
    key: str
    choices: dict[str, str]
    macs: int
    params: int
    peak_bytes: int
    predicted: Predicted | None
    measured: Measurement
    fingerprint: dict[str, str]
    test: Quality  # of the model as it is delivered
    float32_test: Quality | None = None  # of the trained network, if the model is quantised
    validation: Quality
    trained_epochs: int
    onnx_max_error: float
    input: Input
    finalists: list[Attempt]
    pareto: list[Tradeoff]
    evaluated: int
    seconds: dict[str, float]
    versions: dict[str, str]


class RunFolder:
    """Paths of a run, and its config and report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.profile = path / "profile.jsonl"
        self.supernet = path / "supernet.safetensors"
        self.history = path / "history.jsonl"
        self.finalists = path / "finalists.jsonl"
        self.phases = path / "phases.jsonl"
        self.arch = path / "arch.txt"
        self.weights = path / "weights.safetensors"
        self.model = path / "model.onnx"
        self.float32_model = path / "model_float32.onnx"
        self.report = path / "report.json"

    def start(self, config: Config, resume: bool) -> None:
        """Claims the folder for a config. UserError if it belongs to another run, or exists and is not to be resumed."""
        if self.config.exists():
            if not resume:
                raise UserError(
                    "the run folder already exists", got=str(self.path), remedy="add --resume, or choose another --out"
                )
            before = self.read_config()
            # Fingerprints come last: what decides them has names that say more.
            for name in sorted(Config.model_fields, key=lambda n: "fingerprint" in n):
                if getattr(before, name) != getattr(config, name):
                    raise UserError(
                        f"the run in {self.path} was started with another {name.replace('_', ' ')}: {getattr(before, name)}",
                        got=str(getattr(config, name)), remedy="resume with the same arguments, or choose another --out",
                    )  # fmt: skip
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError("the run folder exists and holds no run", got=str(self.path), remedy="choose another --out")
        write_file(self.config, config.model_dump_json(indent=2) + "\n")

    def read_config(self) -> Config:
        return _read(self.config, Config)

    def read_report(self) -> Report:
        """UserError if the folder holds no finished run."""
        if not self.report.is_file():
            state = "an unfinished run" if self.config.is_file() else "no run"
            raise UserError(
                "a finished run is needed", got=f"{state} in {self.path}", remedy="finish it with hwnas search --resume"
            )
        return _read(self.report, Report)


def read_text(path: Path) -> str:
    """UserError if the file is missing or no text."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read", got=str(error), remedy="search again into another folder") from None


def read_weights(path: Path) -> Weights:
    """The weights of a run. UserError if the file is not one of safetensors."""
    try:
        weights: Weights = load_safetensors(path.read_bytes())
    except Exception as error:
        raise UserError(f"{path} is not a safetensors file", got=str(error)) from None
    return weights


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    names = ("hwnas", "torch", "onnx", "onnxruntime", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} cannot be read", got=reason, remedy="search again into another folder") from None
