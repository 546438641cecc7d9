"""A few epochs from scratch with the whole schedule in them: cheaper than full training, and ranks nearly as it does."""

from __future__ import annotations

from hwnas.evaluation.evaluator import Setting
from hwnas.evaluation.evaluators import training


class Evaluator(training.Evaluator):
    def __init__(self, setting: Setting, epochs: int = 5, batch_size: int = 64, learning_rate: float = 0.1) -> None:
        super().__init__(setting, epochs, batch_size, learning_rate)
