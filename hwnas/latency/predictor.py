"""LatencyPredictor: milliseconds of an arch without touching the device, with an interval, and its honest error.

What is known of a device is its latency table and some whole networks; a `LatencyModel`, one file each in
`latency/predictors`, makes milliseconds of them. The interval is cross-conformal (Vovk 2015): quantiles of measured over
predicted, each network predicted by a model that was fitted without it, at the rank that a finite sample needs.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.latency.profile import Profile, calibration_archs
from hwnas.plugins import known, load
from hwnas.space import Space
from hwnas.storage import write_file

Array = NDArray[np.float64]

PACKAGE = "hwnas.latency.predictors"
DEFAULT = "gaussian_process"
FORMAT = "hwnas predictor 1"
LEAST_NETWORKS = 4
FOLDS = 10
MISCOVERAGE = 0.1  # one in ten networks lies outside the interval, half of them below and half above
FLOOR = 0.1  # of the fastest network seen: no model may predict less


@dataclass(frozen=True)
class Prediction:
    """`low_ms` to `high_ms` holds nine in ten of the networks that were left out of the fit."""

    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class PredictorError:
    """Error on whole networks that had no part in the fit. `retest`: mean relative difference between two measurements of one
    network, which no predictor can beat. `coverage`: share of the networks inside their interval.

    `spearman` is None where all networks took as long, `coverage` where the interval is made of these very networks.
    """

    networks: int
    mape: float
    within_5_percent: float
    within_10_percent: float
    spearman: float | None
    retest: float | None
    coverage: float | None = None


@dataclass(frozen=True, eq=False)  # known by identity: what is computed from it is kept
class LatencyTable:
    """What each placed op takes by itself above an empty run, in ms, and that run's own time; where it came from."""

    call_ms: float
    ops: Mapping[PlacedOp, float]
    source: Path

    @classmethod
    def of(cls, profile: Profile) -> LatencyTable:
        """UserError if the profile holds no empty run."""
        (call_ms,) = profile.latencies("empty").values() or (None,)
        if call_ms is None:
            raise UserError(f"the profile {profile.path} holds no empty run", remedy="run hwnas profile to complete it")
        return cls(call_ms, {op: max(0.0, ms - call_ms) for op, ms in profile.ops().items()}, profile.path)


class LatencyModel(ABC):
    """Milliseconds of archs. A file in `latency/predictors` holds one subclass, `Model`.

    `tabulated`: whether it knows those ops only that the table holds.
    """

    tabulated: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: Array) -> LatencyModel:
        """Fitted to whole networks; UserError if the table lacks what the model needs."""

    @abstractmethod
    def estimate(self, archs: Sequence[Arch]) -> Array:
        """[n] ms. UserError if the model does not know an op of an arch."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatencyModel:
        """The model that `to_json` described. UserError, ValueError, TypeError or KeyError if it did not."""


@dataclass(frozen=True)
class Networks:
    """Whole networks that were measured."""

    archs: list[Arch]
    latency_ms: Array

    @classmethod
    def of(cls, profile: Profile, spaces: Sequence[Space]) -> Networks:
        found: dict[str, tuple[Arch, float]] = {}
        for space in spaces:
            for arch, ms in profile.latencies("network", space.fingerprint).items():
                found.setdefault(arch.key, (arch, ms))
        return cls([arch for arch, _ in found.values()], np.array([ms for _, ms in found.values()], np.float64))

    def take(self, index: Sequence[int] | NDArray[np.intp]) -> Networks:
        return Networks([self.archs[i] for i in index], self.latency_ms[np.asarray(index, np.intp)])

    def split(self, share: float) -> tuple[Networks, Networks]:
        """Most of them, and a share that is held out: those whose keys, which are hashes, come first."""
        order = sorted(range(len(self.archs)), key=lambda i: self.archs[i].key)
        cut = round(share * len(order))
        return self.take(sorted(order[cut:])), self.take(sorted(order[:cut]))


class LatencyPredictor:
    """A fitted model with its interval. `left_out` are predictions of the networks, each by a model fitted without it."""

    def __init__(
        self, name: str, model: LatencyModel, span: tuple[float, float], floor_ms: float, networks: Networks, left_out: Array
    ) -> None:
        self.name, self.model, self.span, self.floor_ms = name, model, span, floor_ms
        self.networks, self.left_out = networks, left_out

    @classmethod
    def fit(cls, name: str, table: LatencyTable, networks: Networks) -> LatencyPredictor:
        """The predictor of that name. UserError if it is unknown, or there are fewer than four networks."""
        if len(networks.archs) < LEAST_NETWORKS:
            raise UserError(
                f"a predictor needs at least {LEAST_NETWORKS} measured networks of the space",
                got=f"{len(networks.archs)} in {table.source}",
                remedy="run hwnas profile with this space to complete the profile",
            )  # fmt: skip
        make = model_class(name)
        y = networks.latency_ms
        floor_ms = FLOOR * float(y.min())
        left_out = np.empty(len(y))
        for fold in folds(networks):
            rest = networks.take(np.setdiff1d(np.arange(len(y)), fold))
            model = make.fit(table, rest.archs, rest.latency_ms)
            left_out[fold] = model.estimate([networks.archs[i] for i in fold])
        left_out = np.maximum(left_out, floor_ms)
        model = make.fit(table, networks.archs, y)
        return cls(name, model, conformal_span(y / left_out), floor_ms, networks, left_out)

    def predict(self, archs: Sequence[Arch]) -> list[Prediction]:
        low, high = self.span
        found = [max(ms, self.floor_ms) for ms in self.model.estimate(archs).tolist()] if archs else []
        return [Prediction(ms, ms * low, ms * high) for ms in found]

    def error(self, retest: float | None) -> PredictorError:
        """Of the networks it was fitted to, each predicted without it."""
        return prediction_error(self.left_out, self.networks.latency_ms, retest)

    def judge(self, held_out: Networks, retest: float | None) -> PredictorError:
        """Of networks that it never saw, the interval among them."""
        found = self.predict(held_out.archs)
        y = held_out.latency_ms
        inside = [p.low_ms <= ms <= p.high_ms for p, ms in zip(found, y, strict=True)]
        return prediction_error(np.array([p.latency_ms for p in found]), y, retest, float(np.mean(inside)))

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """JSON. `about`: what else the file is to say, such as the device and its fingerprint."""
        values = {
            "format": FORMAT, "predictor": self.name, "span": self.span, "floor_ms": self.floor_ms,
            "networks": [[arch.key, ms, out] for arch, ms, out in self._rows()], "model": self.model.to_json(), **about,
        }  # fmt: skip
        write_file(path, json.dumps(values) + "\n")

    def _rows(self) -> list[tuple[Arch, float, float]]:
        return list(zip(self.networks.archs, self.networks.latency_ms.tolist(), self.left_out.tolist(), strict=True))


def load_predictor(path: Path) -> tuple[LatencyPredictor, dict[str, Any]]:
    """A saved predictor, and all that its file says. UserError if it is no such file.

    It predicts as the saved one did; the networks it was fitted to stay behind in the profile.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        low, high, floor_ms = (float(v) for v in (*values["span"], values["floor_ms"]))
        if not 0 < low <= 1 <= high < math.inf or not 0 < floor_ms < math.inf:
            raise ValueError("an interval holds its prediction")
        name = str(values["predictor"])
        model = model_class(name).from_json(values["model"])
    except UserError as error:
        raise UserError(f"{path} is not a predictor: {error}") from None
    except FileNotFoundError:
        raise UserError("there is no predictor", got=str(path), remedy="run hwnas fit first") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is not a predictor", got=str(error), remedy="run hwnas fit again") from None
    return LatencyPredictor(name, model, (low, high), floor_ms, Networks([], np.empty(0)), np.empty(0)), values


def folds(networks: Networks) -> list[NDArray[np.intp]]:
    """Ten groups, or one a network where there are fewer than twice as many, dealt by the order of their keys."""
    order = np.array(sorted(range(len(networks.archs)), key=lambda i: networks.archs[i].key), np.intp)
    count = FOLDS if len(order) >= 2 * FOLDS else len(order)
    return [np.sort(order[start::count]) for start in range(count)]


def conformal_span(ratios: Array) -> tuple[float, float]:
    """What to multiply a prediction with to get its interval. `ratios`: measured over predicted, of networks left out.

    The k-th smallest and largest of n, k = floor(miscoverage / 2 * (n + 1)), the extremes where that is none; the prediction
    itself always lies inside.
    """
    ranked = np.sort(ratios)
    k = max(1, math.floor(MISCOVERAGE / 2 * (len(ranked) + 1)))
    return min(1.0, float(ranked[k - 1])), max(1.0, float(ranked[-k]))


def prediction_error(predicted: Array, measured: Array, retest: float | None, coverage: float | None = None) -> PredictorError:
    relative = np.abs(predicted / measured - 1)
    ranked = len(measured) > 1 and np.ptp(measured) > 0 and np.ptp(predicted) > 0
    rank = float(spearmanr(predicted, measured).statistic) if ranked else None
    within_5, within_10 = (float((relative <= limit).mean()) for limit in (0.05, 0.1))
    return PredictorError(len(measured), float(relative.mean()), within_5, within_10, rank, retest, coverage)


def model_class(name: str) -> type[LatencyModel]:
    make = getattr(load(PACKAGE, name, "latency predictor"), "Model", None)
    if not (inspect.isclass(make) and issubclass(make, LatencyModel)):
        raise UserError("a predictor's module defines Model, a LatencyModel", got=name)
    return make


def check_predictable(space: Space) -> None:
    """UserError if the space has too few networks to fit a predictor to: known before anything is measured."""
    found = len(calibration_archs(space, LEAST_NETWORKS))
    if found < LEAST_NETWORKS:
        raise UserError(
            f"a latency predictor needs a space of at least {LEAST_NETWORKS} different networks", got=found,
            remedy="widen the space, or search it under a budget without latency",
        )  # fmt: skip


def make_predictor(name: str, profile: Profile, spaces: Space | Sequence[Space]) -> LatencyPredictor:
    """The predictor of that name, fitted to all networks of these spaces that the profile holds."""
    some = [spaces] if isinstance(spaces, Space) else spaces
    if model_class(name).tabulated:
        check_complete(profile, some)
    return LatencyPredictor.fit(name, LatencyTable.of(profile), Networks.of(profile, some))


def check_complete(profile: Profile, spaces: Sequence[Space]) -> None:
    """UserError if the profile lacks ops of these spaces."""
    missing = [op for space in spaces for op in profile.missing(space)]
    if missing:
        raise UserError(
            f"the profile {profile.path} lacks {len(missing)} ops of this space", got=str(missing[0]),
            remedy="run hwnas profile with this space to complete it",
        )  # fmt: skip


def best_predictor(
    table: LatencyTable, networks: Networks, names: Sequence[str] = (), told: Callable[[str], None] = lambda name: None
) -> dict[str, LatencyPredictor]:
    """All predictors that can be fitted, the one of the lowest mean error on networks left out first.

    UserError if none can.
    """
    fitted, reasons = [], []
    for name in names or known(PACKAGE):
        told(name)
        try:
            fitted.append(LatencyPredictor.fit(name, table, networks))
        except UserError as error:
            reasons.append(error)
    if not fitted:
        raise reasons[0]
    return {p.name: p for p in sorted(fitted, key=lambda p: p.error(None).mape)}


def error_json(error: PredictorError) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(error).items()}
