"""A predictor of accuracy: a ridge regression on what a genotype chooses, fitted to genotypes whose accuracy is known.

The cheapest evaluator; its tables also feed the native inner search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import RidgeCV

from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting
from hwnas.space import Genotype, Space


class Evaluator(evaluator.Evaluator):
    """`known`: pairs of a genotype and its accuracy, 0 to 1."""

    sees_training = True

    def __init__(self, setting: Setting, known: Sequence[tuple[Sequence[int], float]] = ()) -> None:
        super().__init__(setting)
        if len(known) < 4:
            raise UserError("the predictor needs at least 4 genotypes of known accuracy", got=len(known))
        x = np.array([_one_hot(setting.space, setting.space.check(genotype)) for genotype, _ in known])
        self.model = RidgeCV(np.logspace(-3, 3, 13)).fit(x, [accuracy for _, accuracy in known])

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        row = np.array([_one_hot(self.setting.space, genotype)])
        return {"accuracy": float(np.clip(self.model.predict(row)[0], 0.0, 1.0))}

    def images_passed(self) -> float:
        return 0.0

    def tables(self) -> list[np.ndarray]:
        """Per choice what each option adds to the accuracy, [options, 1]; the constant is in the first."""
        sizes = [len(c.options) for c in self.setting.space.choices]
        parts = np.split(self.model.coef_, np.cumsum(sizes)[:-1])
        parts[0] = parts[0] + self.model.intercept_
        return [part[:, None] for part in parts]


def _one_hot(space: Space, genotype: Genotype) -> list[float]:
    return [value for row in space.one_hot(genotype) for value in row]
