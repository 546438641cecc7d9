"""LatencyPredictor: milliseconds of an arch without touching the device, with an interval, and its honest error."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.latency.profile import Profile, calibration_archs
from hwnas.plugins import load
from hwnas.regress.linear import NonNegativeLinear, fit_nonnegative
from hwnas.space import Space

LEAST_NETWORKS = 4


@dataclass(frozen=True)
class Prediction:
    """`low_ms` to `high_ms` holds nine in ten of the networks that were left out of the fit."""

    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class PredictorError:
    """Leave-one-out error on whole networks. `retest`: mean relative difference between two measurements of one network.

    `spearman` is None where all networks took as long.
    """

    networks: int
    mape: float
    within_10_percent: float
    spearman: float | None
    retest: float | None


class LatencyPredictor(ABC):
    """A predictor that is linear in a few features of an arch, fitted to a profile's whole networks.

    A subclass says in `_features` what the features are; a file in `latency/predictors` holds one subclass, `Predictor`.
    """

    def __init__(self, profile: Profile, space: Space) -> None:
        self.profile = profile
        networks: dict[str, tuple[Arch, list[float]]] = {}
        for row in profile.rows("network", space.fingerprint):
            networks.setdefault(row.arch.key, (row.arch, []))[1].append(row.measurement.latency_ms)
        if len(networks) < LEAST_NETWORKS:
            raise UserError(
                f"a predictor needs at least {LEAST_NETWORKS} measured networks of the space",
                got=f"{len(networks)} in {profile.path}", remedy="run hwnas profile with this space to complete the profile",
            )  # fmt: skip
        x = np.array([self._features(arch) for arch, _ in networks.values()], np.float64)
        self._y = np.array([min(turns) for _, turns in networks.values()], np.float64)
        self._fit: NonNegativeLinear = fit_nonnegative(x, self._y)
        self._errors = self._fit.left_out / self._y - 1
        low, high = np.quantile(self._y / self._fit.left_out, (0.05, 0.95))
        self._span = min(1.0, float(low)), max(1.0, float(high))

    @abstractmethod
    def _features(self, arch: Arch) -> list[float]:
        """Numbers that latency grows with. UserError if the profile does not know an op of the arch."""

    def predict(self, archs: Sequence[Arch]) -> list[Prediction]:
        latencies = [float(self._fit.predict(np.array([self._features(arch)]))[0]) for arch in archs]
        return [Prediction(ms, ms * self._span[0], ms * self._span[1]) for ms in latencies]

    def error(self, retest: float | None) -> PredictorError:
        absolute = np.abs(self._errors)
        ranked = np.ptp(self._y) > 0 and np.ptp(self._fit.left_out) > 0
        rank = float(spearmanr(self._fit.left_out, self._y).statistic) if ranked else None
        return PredictorError(len(self._y), float(absolute.mean()), float((absolute <= 0.1).mean()), rank, retest)


def check_predictable(space: Space) -> None:
    """UserError if the space has too few networks to fit a predictor to: known before anything is measured."""
    found = len(calibration_archs(space, LEAST_NETWORKS))
    if found < LEAST_NETWORKS:
        raise UserError(
            f"a latency predictor needs a space of at least {LEAST_NETWORKS} different networks", got=found,
            remedy="widen the space, or search it under a budget without latency",
        )  # fmt: skip


def make_predictor(name: str, profile: Profile, space: Space) -> LatencyPredictor:
    """The predictor of that name, fitted."""
    make = getattr(load("hwnas.latency.predictors", name, "latency predictor"), "Predictor", None)
    if not (inspect.isclass(make) and issubclass(make, LatencyPredictor)):
        raise UserError("a predictor's module defines Predictor, a LatencyPredictor", got=name)
    return make(profile, space)
