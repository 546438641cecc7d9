"""Transfer: a predictor for a new device from predictors of known devices and a few measured networks of the new one.

The new device's log-latency is inferred as in `regress.transfer`: a weighted sum of the known devices' and of op counts. Which
networks to measure is chosen before any is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.text import print_arch
from hwnas.latency.predictor import FLOOR, LatencyModel, LatencyPredictor, LatencyTable, Networks, model_class
from hwnas.latency.profile import calibration_archs, op_arch
from hwnas.lower.features import features
from hwnas.ops import read_arch
from hwnas.regress.transfer import Family, Inferred
from hwnas.space import Space

Array = NDArray[np.float64]

NAME = "hwnas.latency.transfer"  # by which a saved predictor finds this module
CANDIDATES = 400  # networks among which is chosen
LEAST_KNOWN, LEAST_SAMPLES = 2, 3
Z90 = NormalDist().inv_cdf(0.95)


class Model(LatencyModel):
    """exp(constant + sum_d known_weights[d] log ms_d + sum_op op_weights[op] count(op)), ms_d from known devices' models."""

    def __init__(
        self, known: Sequence[tuple[str, LatencyModel, float]], constant: float, known_weights: Sequence[float],
        op_weights: Mapping[PlacedOp, float],
    ) -> None:  # fmt: skip
        self.known, self.constant, self.known_weights, self.op_weights = list(known), constant, list(known_weights), op_weights

    @classmethod
    def fit(cls, table: LatencyTable, archs: Sequence[Arch], latency_ms: Array) -> Model:
        raise UserError("a transferred predictor comes from other devices", remedy="use hwnas transfer")

    def estimate(self, archs: Sequence[Arch]) -> Array:
        logs = known_logs(self.known, archs)
        own = [sum(n * self.op_weights.get(op, 0.0) for op, n in features(arch).ops.items()) for arch in archs]
        return np.asarray(np.exp(self.constant + np.array(self.known_weights) @ logs + np.array(own)))

    def to_json(self) -> dict[str, Any]:
        return {
            "known": [{"predictor": n, "floor_ms": f, "model": m.to_json()} for n, m, f in self.known],
            "constant": self.constant, "known_weights": self.known_weights,
            "ops": [[print_arch(op_arch(op)), weight] for op, weight in self.op_weights.items()],
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Model:
        known = [
            (str(k["predictor"]), model_class(str(k["predictor"])).from_json(k["model"]), float(k["floor_ms"]))
            for k in values["known"]
        ]
        weights = [float(w) for w in values["known_weights"]]
        if len(weights) != len(known):
            raise ValueError("each known device has one weight")
        archs = [(read_arch(text), float(weight)) for text, weight in values["ops"]]
        return cls(known, float(values["constant"]), weights, {a.placed(a.nodes[0]): weight for a, weight in archs})


class Transfer:
    """The known devices of a space. UserError if there are fewer than two, or they do not know its ops."""

    def __init__(self, known: Sequence[LatencyPredictor], space: Space, candidates: int = CANDIDATES) -> None:
        if len(known) < LEAST_KNOWN:
            raise UserError(
                f"transfer needs at least {LEAST_KNOWN} known devices", got=len(known), remedy="name more with --known"
            )
        self._known = [(p.name, p.model, p.floor_ms) for p in known]
        self.archs = calibration_archs(space, candidates)
        self._ops = list(dict.fromkeys(op for arch in self.archs for op in features(arch).ops))
        self._family = Family(known_logs(self._known, self.archs), self._counts(self.archs))

    def choose(self, samples: int) -> list[Arch]:
        """The networks to measure on the new device, the most telling first."""
        if not LEAST_SAMPLES <= samples <= len(self.archs):
            raise UserError(f"transfer measures {LEAST_SAMPLES} to {len(self.archs)} networks of this space", got=samples)
        return [self.archs[i] for i in self._family.choose(samples, np.arange(len(self.archs)))]

    def fit(self, archs: Sequence[Arch], latency_ms: Array) -> LatencyPredictor:
        """From candidates that were measured on the new device. The interval is the process's own."""
        position = {arch.key: i for i, arch in enumerate(self.archs)}
        index = np.array([position[arch.key] for arch in archs], np.intp)
        logs, everywhere = np.log(latency_ms), np.arange(len(self.archs))
        found = self._family.infer(index, logs, everywhere)
        left_out = np.empty(len(index))
        for i in range(len(index)):
            rest = np.delete(np.arange(len(index)), i)
            left_out[i] = self._model(self._family.infer(index[rest], logs[rest])).estimate([archs[i]])[0]
        reach = float(np.exp(Z90 * np.sqrt(np.mean(found.deviation**2))))
        floor_ms = FLOOR * float(latency_ms.min())
        return LatencyPredictor(
            NAME, self._model(found), (1 / reach, reach), floor_ms, Networks(list(archs), latency_ms), left_out
        )

    def _model(self, found: Inferred) -> Model:
        weights = dict(zip(self._ops, found.feature_weights.tolist(), strict=True))
        return Model(self._known, found.constant, found.known_weights.tolist(), weights)

    def _counts(self, archs: Sequence[Arch]) -> Array:
        column = {op: i for i, op in enumerate(self._ops)}
        counts = np.zeros((len(archs), len(self._ops)))
        for row, arch in enumerate(archs):
            for op, count in features(arch).ops.items():
                counts[row, column[op]] = count
        return counts


def known_logs(known: Sequence[tuple[str, LatencyModel, float]], archs: Sequence[Arch]) -> Array:
    """[devices, archs]"""
    return np.log([np.maximum(model.estimate(archs), floor_ms) for _, model, floor_ms in known])
