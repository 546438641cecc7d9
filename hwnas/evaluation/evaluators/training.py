"""Full training from scratch, and the validation split. Training choices of the space set the recipe."""

from __future__ import annotations

from hwnas.evaluation import evaluator
from hwnas.evaluation.evaluator import Metrics, Setting, check_fidelity, quality
from hwnas.evaluation.training_choices import checked_recipe, training_of
from hwnas.lower.torch import to_torch
from hwnas.space import Genotype
from hwnas.supernet.train import train_network


class Evaluator(evaluator.Evaluator):
    """`epochs` at most: training stops early. A fidelity below 1 trains that share of them."""

    sees_training = True

    def __init__(self, setting: Setting, epochs: int = 60, batch_size: int = 64, learning_rate: float = 0.1) -> None:
        super().__init__(setting)
        self.recipe = checked_recipe(epochs, batch_size, learning_rate)

    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        check_fidelity(fidelity)
        setting = self.setting
        recipe, augmentation = training_of(setting.space, genotype, self.recipe, setting.augmentation, fidelity)
        network = to_torch(setting.arch(genotype), seed=setting.seed)
        return quality(train_network(network, setting.data, augmentation, recipe, seed=setting.seed).validation)

    def images_passed(self) -> float:
        return self.recipe.epochs * (3.0 * len(self.setting.data.train) + len(self.setting.data.validation))
