"""Shared weights: the paths' own weights out of the supernet, batch norm recalibrated, on the validation split.

A group of trials is one merged program, in which whatever they have in common runs once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.data import SearchData, Split
from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting, check_fidelity, quality
from hwnas.search.strategy import Trial
from hwnas.space import Genotype
from hwnas.supernet.evaluate import evaluate_many
from hwnas.supernet.race import Race


class Evaluator(evaluator.Evaluator):
    """A fidelity below 1 looks at that share of the validation split.

    race: in a group, trials that another has left behind stop early; the probability that the best is stopped by mistake. 0: no
    trial is, as in a search for a front. memory_mib: of activations alive at once, by default 1 GiB on a processor and 8 on a
    GPU.
    """

    needs_supernet = True
    together = 64

    def __init__(self, setting: Setting, race: float = 0.05, memory_mib: int | None = None) -> None:
        super().__init__(setting)
        if setting.supernet is None:
            raise UserError("the supernet evaluator needs a supernet", remedy="train one, or choose another evaluator")
        if not 0 <= race < 1 or (memory_mib is not None and memory_mib < 1):
            raise UserError("race is a probability from 0 to below 1, memory_mib at least 1", got=(race, memory_mib))
        self.supernet, self.race = setting.supernet, race
        self.memory_limit = None if memory_mib is None else memory_mib << 20

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        return self.evaluate_many([Trial(genotype, fidelity)])[0]

    def evaluate_many(self, trials: Sequence[Trial]) -> list[Metrics]:
        """Those of `evaluate`, but what a stopped trial is worth is estimated: see hwnas/supernet/evaluate.py."""
        found: dict[int, Metrics] = {}
        for fidelity in sorted({trial.fidelity for trial in trials}):
            check_fidelity(fidelity)
            chosen = [i for i, trial in enumerate(trials) if trial.fidelity == fidelity]
            race = Race(self.race) if self.race and not self.setting.front else None
            data = self._data(fidelity)
            evaluations = evaluate_many(
                self.supernet, [trials[i].genotype for i in chosen], data,
                seed=self.setting.seed, memory_limit=self.memory_limit, race=race,
            )  # fmt: skip
            for i, evaluation in zip(chosen, evaluations, strict=True):
                found[i] = {**quality(evaluation), "complete": float(evaluation.images == len(data.validation))}
        return [found[i] for i in range(len(trials))]

    def _data(self, fidelity: float) -> SearchData:
        data = self.setting.data
        images = max(1, round(fidelity * len(data.validation)))
        return SearchData(data.train, Split(data.validation.images[:images], data.validation.labels[:images]))

    def images_passed(self) -> float:
        return float(len(self.setting.data.validation) + 512)  # the second for batch norm
