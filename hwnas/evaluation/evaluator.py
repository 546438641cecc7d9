"""Evaluator: metrics of a genotype. One form from cheap to dear, so that a search does not know which it calls."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass

from hwnas.data import Augmentation, SearchData
from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.plugins import load, parse_call
from hwnas.space import Genotype, Space
from hwnas.supernet.evaluate import Evaluation
from hwnas.supernet.supernet import Supernet


@dataclass(frozen=True, eq=False)
class Setting:
    """Where genotypes are evaluated. `supernet`: trained, for evaluators that take their weights from it."""

    space: Space
    data: SearchData
    augmentation: Augmentation
    seed: int = 0
    supernet: Supernet | None = None

    def arch(self, genotype: Genotype) -> Arch:
        return simplify(self.space.decode(genotype))


class Evaluator(ABC):
    """A file in `evaluation/evaluators` holds one subclass, `Evaluator`, whose arguments follow the setting.

    The result depends on setting, genotype and fidelity alone: not on what was evaluated before, nor on the process.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def evaluate(self, genotype: Genotype, fidelity: float = 1.0) -> dict[str, float]:
        """Metrics by name; the first is what the evaluator is about, and higher is better.

        `fidelity`: the share of the full effort, above 0 and at most 1, where the evaluator knows such a thing.
        """


def make_evaluator(text: str, setting: Setting) -> Evaluator:
    """The evaluator that `name` or `name(argument=value, ...)` names."""
    name, arguments = parse_call(text, "evaluator")
    make = getattr(load("hwnas.evaluation.evaluators", name, "evaluator"), "Evaluator", None)
    if not (inspect.isclass(make) and issubclass(make, Evaluator)):
        raise UserError("an evaluator's module defines Evaluator, a subclass of hwnas.evaluation.evaluator.Evaluator", got=name)
    known = list(inspect.signature(make).parameters)[1:]
    unknown = [a for a in arguments if a not in known]
    if unknown:
        raise UserError(f"evaluator {name} has no argument {unknown[0]!r}", remedy=f"known: {', '.join(known) or 'none'}")
    return make(setting, **arguments)


def quality(found: Evaluation) -> dict[str, float]:
    """The metrics of a classifier on a split."""
    return {
        "accuracy": found.accuracy, "loss": found.loss, "macro_f1": found.macro_f1,
        "precision": found.precision, "recall": found.recall,
    }  # fmt: skip


def check_fidelity(fidelity: float) -> None:
    if not 0 < fidelity <= 1:
        raise UserError("a fidelity is above 0 and at most 1", got=fidelity)
