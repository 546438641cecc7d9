"""A run: its question, its folder, and who watches; what the phases share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwnas.data import Dataset
from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Evaluator
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.latency.device import Device
from hwnas.latency.measure import Measurement, measure
from hwnas.lower.weights import Weights, init_weights
from hwnas.report.progress import Watch
from hwnas.report.run import Config, Input, RunFolder
from hwnas.search.budget import Budget
from hwnas.space import Genotype, Space
from hwnas.storage import Journal
from hwnas.supernet.derive import derive
from hwnas.supernet.supernet import Supernet

_MEASURE_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Question:
    """What a run is asked, checked and loaded.

    networks: the space that was asked for. The evaluator's has training choices beside it, if they are searched too.
    """

    config: Config
    budget: Budget
    device: Device
    dataset: Dataset
    networks: Space
    evaluator: Evaluator

    @property
    def space(self) -> Space:
        return self.evaluator.setting.space

    @property
    def supernet(self) -> Supernet | None:
        return self.evaluator.setting.supernet

    def arch(self, genotype: Genotype) -> Arch:
        return simplify(self.space.decode(genotype))

    def weights(self, genotype: Genotype) -> Weights:
        """The supernet's, or where there is none random ones: a latency does not depend on them."""
        return derive(self.supernet, genotype) if self.supernet else init_weights(self.arch(genotype), self.config.seed)

    def input(self) -> Input:
        """What the network is fed."""
        data = self.dataset
        mean, std = (np.atleast_1d(v).astype(float).ravel().tolist() for v in (data.mean, data.std))
        return Input(dims=list(data.input), mean=mean, std=std, classes=list(data.classes))


class Run:
    """`workers`: processes that evaluate. `resume`: it may continue what an interrupted run left."""

    def __init__(
        self, question: Question, folder: RunFolder, profile_path: Path, workers: int, resume: bool, watch: Watch
    ) -> None:
        self.question, self.folder, self.profile_path = question, folder, profile_path
        self.workers, self.resume, self.watch = workers, resume, watch
        self.canary_ms: float | None = None  # of the profile, if there is one
        self._seconds: list[dict[str, object]] = []  # of phases that ended and are not written down yet

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Writes down how long it took, as soon as the folder is claimed."""
        start = time.perf_counter()
        yield
        self._seconds.append({"phase": name, "seconds": round(time.perf_counter() - start, 3)})
        if self.folder.config.exists():
            journal = continued(self.folder.phases, {"format": "hwnas phases 1"})
            while self._seconds:
                journal.append(self._seconds.pop(0))

    def seconds(self) -> dict[str, float]:
        """Of each phase, over all processes that the run took."""
        total: dict[str, float] = {}
        for row in Journal.read(self.folder.phases).rows:
            total[row["phase"]] = round(total.get(row["phase"], 0.0) + row["seconds"], 3)
        return total

    def measure(self, models: list[bytes], phase: str) -> list[Measurement]:
        """On the device, together."""
        if not models:
            return []
        found = measure(
            models, self.question.device, seconds=_MEASURE_SECONDS, min_rounds=30, canary_ms=self.canary_ms,
            progress=lambda share: self.watch(phase, round(100 * share), 100, ""),
        )  # fmt: skip
        self.watch(phase, 100, 100, "")
        return found.models


def continued(path: Path, header: dict[str, object]) -> Journal:
    """The journal to continue, or a new one."""
    if not path.exists():
        return Journal.create(path, header)
    journal = Journal.resume(path)
    if journal.header != header:
        raise UserError(f"{path} belongs to another run", got=str(journal.header), remedy="search into a new folder")
    return journal
