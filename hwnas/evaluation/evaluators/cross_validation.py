"""k-fold cross-validation: for small data, where one validation split says little."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import StratifiedKFold

from hwnas.data import SearchData, Split
from hwnas.errors import UserError
from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting, check_fidelity, quality
from hwnas.evaluation.training_choices import checked_recipe, training_of
from hwnas.lower.torch import to_torch
from hwnas.space import Genotype
from hwnas.supernet.train import train_network


class Evaluator(evaluator.Evaluator):
    """Trains from scratch on `folds - 1` parts of the training and validation images and scores on the part left out, in turn.

    The metrics are means over the folds; `accuracy_deviation` is the standard deviation of their accuracies.
    """

    sees_training = True

    def __init__(
        self, setting: Setting, folds: int = 5, epochs: int = 20, batch_size: int = 64, learning_rate: float = 0.1
    ) -> None:
        super().__init__(setting)
        self.recipe = checked_recipe(epochs, batch_size, learning_rate)
        parts = (setting.data.train, setting.data.validation)
        self.images, self.labels = (np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "labels"))
        rarest = int(np.bincount(self.labels).min())
        if type(folds) is not int or not 2 <= folds <= rarest:
            raise UserError("cross-validation needs 2 folds or more and an image of each class in each", got=folds)
        self.folds = folds
        self.split = StratifiedKFold(folds, shuffle=True, random_state=setting.seed)

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        check_fidelity(fidelity)
        setting = self.setting
        recipe, augmentation = training_of(setting.space, genotype, self.recipe, setting.augmentation, fidelity)
        rows = []
        for train, validation in self.split.split(self.labels, self.labels):
            data = SearchData(*(Split(self.images[i], self.labels[i]) for i in (train, validation)))
            network = to_torch(setting.arch(genotype), seed=setting.seed)
            rows.append(quality(train_network(network, data, augmentation, recipe, seed=setting.seed).validation))
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return {**means, "accuracy_deviation": float(np.std([row["accuracy"] for row in rows]))}

    def images_passed(self) -> float:
        return 3.0 * self.folds * self.recipe.epochs * len(self.labels)
