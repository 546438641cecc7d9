"""Evaluator: metrics of a genotype. One form from cheap to dear, so that a search does not know which it calls."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hwnas.data import Augmentation, SearchData
from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.plugins import load, parse_call
from hwnas.search.strategy import Trial
from hwnas.space import Genotype, Space
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation

Metrics = dict[str, float]


@dataclass(frozen=True, eq=False)
class Setting:
    """Where genotypes are evaluated. `supernet`: for evaluators that need one; trained before the first evaluation, but perhaps
    not yet when the evaluator is made. front: a whole front is sought, so that also what is not the best is evaluated to its
    end."""

    space: Space
    data: SearchData
    augmentation: Augmentation
    seed: int = 0
    supernet: Supernet | None = None
    front: bool = False

    def arch(self, genotype: Genotype) -> Arch:
        return simplify(self.space.decode(genotype))


class Evaluator(ABC):
    """A file in `evaluation/evaluators` holds one subclass, `Evaluator`, whose arguments follow the setting.

    needs_supernet: it takes weights from the setting's supernet.
    sees_training: a genotype's training choices change what it finds.
    together: how many trials are evaluated at once. A search cuts what it has to evaluate into groups of so many, the same
    ones whoever evaluates them and after an interruption: numbers may depend, in their last digits, on the group.
    """

    needs_supernet: ClassVar[bool] = False
    sees_training: ClassVar[bool] = False
    together: ClassVar[int] = 1

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> Metrics:
        """Metrics by name; the first is what the evaluator is about, and higher is better.

        `complete`, if it is among them and 0: the evaluation ended early, and the others are estimates.
        `fidelity`: the share of the full effort, above 0 and at most 1, where the evaluator knows such a thing. The result
        depends on setting, genotype and fidelity alone: not on what was evaluated before, nor on the process.
        """

    def evaluate_many(self, trials: Sequence[Trial]) -> list[Metrics]:
        """The metrics of each trial of a group, in order: those of `evaluate` up to rounding, or estimates if it says so.

        They depend on setting and group alone: the same group gives the same bits, in any process.
        """
        return [self.evaluate(trial.genotype, trial.fidelity) for trial in trials]

    def images_passed(self) -> float:
        """How many images one evaluation sends through a network, a pass backward counted as two: its price, roughly.

        Infinite where nobody knows: such an evaluation counts as dear.
        """
        return float("inf")


def find_evaluator(text: str) -> type[Evaluator]:
    """The class that `name` or `name(argument=value, ...)` names."""
    name, arguments = parse_call(text, "evaluator")
    make = getattr(load("hwnas.evaluation.evaluators", name, "evaluator"), "Evaluator", None)
    if not (inspect.isclass(make) and issubclass(make, Evaluator)):
        raise UserError("an evaluator's module defines Evaluator, a subclass of hwnas.evaluation.evaluator.Evaluator", got=name)
    known = list(inspect.signature(make).parameters)[1:]
    unknown = [a for a in arguments if a not in known]
    if unknown:
        raise UserError(f"evaluator {name} has no argument {unknown[0]!r}", remedy=f"known: {', '.join(known) or 'none'}")
    return make


def make_evaluator(text: str, setting: Setting) -> Evaluator:
    """The evaluator that `name` or `name(argument=value, ...)` names."""
    make = find_evaluator(text)
    try:
        return make(setting, **parse_call(text, "evaluator")[1])
    except TypeError as error:
        raise UserError(f"evaluator {text} cannot be built: {error}") from None


def quality(found: Evaluation) -> Metrics:
    """The metrics of a classifier on a split."""
    return {
        "accuracy": found.accuracy, "loss": found.loss, "macro_f1": found.macro_f1,
        "precision": found.precision, "recall": found.recall,
    }  # fmt: skip


def check_fidelity(fidelity: float) -> None:
    if not 0 < fidelity <= 1:
        raise UserError("a fidelity is above 0 and at most 1", got=fidelity)
