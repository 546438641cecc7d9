"""Shared weights: the path's own weights out of the supernet, batch norm recalibrated, on the validation split."""

from __future__ import annotations

from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Setting, quality
from hwnas.lower.torch import to_torch
from hwnas.space import Genotype
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate, recalibrate


class Evaluator(evaluator.Evaluator):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.supernet is None:
            raise UserError("the supernet evaluator needs a trained supernet", remedy="train one, or choose another evaluator")
        self.supernet = setting.supernet

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> dict[str, float]:
        network = to_torch(self.setting.arch(genotype), derive(self.supernet, genotype))
        recalibrate(network, self.setting.data.train, seed=self.setting.seed)
        return quality(evaluate(network, self.setting.data.validation))
