"""Shared weights: the path's own weights out of the supernet, batch norm recalibrated, on the validation split."""

from __future__ import annotations

from hwnas.data import Split
from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting, check_fidelity, quality
from hwnas.lower.torch import to_torch
from hwnas.space import Genotype
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate, recalibrate


class Evaluator(evaluator.Evaluator):
    """A fidelity below 1 looks at that share of the validation split."""

    needs_supernet = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.supernet is None:
            raise UserError("the supernet evaluator needs a supernet", remedy="train one, or choose another evaluator")
        self.supernet = setting.supernet

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        check_fidelity(fidelity)
        data = self.setting.data
        network = to_torch(self.setting.arch(genotype), derive(self.supernet, genotype))
        recalibrate(network, data.train, seed=self.setting.seed)
        images = max(1, round(fidelity * len(data.validation)))
        return quality(evaluate(network, Split(data.validation.images[:images], data.validation.labels[:images])))

    def images_passed(self) -> float:
        return float(len(self.setting.data.validation) + 512)  # the second for batch norm
