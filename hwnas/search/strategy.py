"""Strategy: ask for genotypes, tell what they were worth. Deterministic in its seed and in what it was told."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from hwnas.errors import UserError
from hwnas.plugins import load, parse_call
from hwnas.search.admission import Admission
from hwnas.space import Genotype

_TRIES = 12  # proposals that may be networks seen before


@dataclass(frozen=True)
class Score:
    """`accuracy` on the validation split, 0 to 1, or what else an evaluator is about, such as a proxy's value; higher is
    better. `loss` there, which ranks architectures of one accuracy. Not `complete`: the evaluation ended early, because another
    was seen to be better, and both are estimates.
    """

    accuracy: float
    loss: float
    complete: bool = True

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better."""
        return self.accuracy, -self.loss


@dataclass(frozen=True)
class Trial:
    """A genotype to evaluate, and with what share of the full effort: of the epochs of training, above 0 and at most 1."""

    genotype: Genotype
    fidelity: float = 1.0


class Strategy(ABC):
    """Proposes genotypes that `admission` admits. A file in `search/strategies` holds one subclass, `Strategy`.

    Replaying the same tells after the same asks must give the same asks: resuming a search relies on it.
    """

    def __init__(self, admission: Admission, seed: int) -> None:
        self.admission = admission
        self.rng = random.Random(seed)
        self.asked: set[str] = set()  # keys of networks, as far as `fresh` found them

    @property
    def seeks_front(self) -> bool:
        """Whether it is after the best network for every cost, rather than the best."""
        return False

    @abstractmethod
    def ask(self, count: int = 1) -> list[Trial]:
        """The next trials, at least one and at most `count`: as many as may be evaluated without knowing each other's worth.

        Every trial is told, in this order, before the next ask.
        """

    @abstractmethod
    def tell(self, trial: Trial, score: Score) -> None:
        """What a trial of the last ask was worth."""

    def fresh(self, propose: Callable[[], Genotype]) -> Genotype:
        """The first proposal of a network that was not asked for before; after many in vain, the last proposal."""
        for _ in range(_TRIES):
            genotype = propose()
            key = self.admission.traits(genotype).key
            if key not in self.asked:
                break
        self.asked.add(key)
        return genotype


def make_strategy(text: str, admission: Admission, seed: int) -> Strategy:
    """The strategy that `name` or `name(argument=value, ...)` names."""
    name, arguments = parse_call(text, "strategy")
    make = getattr(load("hwnas.search.strategies", name, "strategy"), "Strategy", None)
    if not (inspect.isclass(make) and issubclass(make, Strategy)):
        raise UserError("a strategy's module defines Strategy, a subclass of hwnas.search.strategy.Strategy", got=name)
    known = list(inspect.signature(make).parameters)[2:]
    unknown = [a for a in arguments if a not in known]
    if unknown:
        raise UserError(f"strategy {name} has no argument {unknown[0]!r}", remedy=f"known: {', '.join(known) or 'none'}")
    try:
        return make(admission, seed, **arguments)
    except TypeError as error:
        raise UserError(f"strategy {name} cannot be built: {error}", got=text) from None
