"""Warm start: a finished search, for another device or on other data, is prior knowledge for the next.

What ranked high there is sampled first here, if the budget admits it, and its neighbours more often afterwards. Accuracies do
not carry over, since the data may be others: only the order does. Every strategy samples through its admission, so every
strategy is started warm, and a resumed search replays as it was.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from hwnas.errors import UserError
from hwnas.search.admission import Admission, Traits, Violation, spelled
from hwnas.space import Genotype, Space
from hwnas.storage import Journal


def prior_genotypes(history: Path, space: Space) -> list[Genotype]:
    """The genotypes of a finished search, one for each network, best first. UserError if they are not of this space."""
    if not history.is_file():
        raise UserError("a warm start needs a run's history", got=str(history), remedy="name the folder of a finished run")
    found: dict[str, tuple[tuple[float, float], Genotype]] = {}
    for row in Journal.read(history).rows:
        try:
            genotype = space.check(row["genotype"])
            rank = float(row["accuracy"]), -float(row["loss"])
            key = str(row["key"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{history} cannot start a search of {space.name} warm", got=str(error), remedy="name a run of the same space"
            ) from None
        if key not in found or rank > found[key][0]:
            found[key] = rank, genotype
    if not found:
        raise UserError(f"{history} holds no evaluated architecture", remedy="name a finished run")
    return [genotype for _, genotype in sorted(found.values(), key=lambda pair: pair[0], reverse=True)]


class WarmAdmission(Admission):
    """Samples the `first` best of `prior` first; later a sample is a neighbour of one of those with chance `weight`."""

    def __init__(
        self,
        space: Space,
        violation: Violation,
        fallback: Genotype,
        prior: Sequence[Genotype],
        traits: Callable[[Genotype], Traits] = spelled,
        first: int = 16,
        weight: float = 0.25,
        price: float = float("inf"),
    ) -> None:
        super().__init__(space, violation, fallback, traits, price=price)
        self.best = [g for g in prior if violation(g) == 0][:first]
        self.weight = weight
        self._waiting = list(reversed(self.best))

    def promising(self, rng: random.Random, among: int) -> Genotype:
        """What the finished search liked is the better promise."""
        return self.sample(rng) if self._waiting else super().promising(rng, among)

    def sample(self, rng: random.Random) -> Genotype:
        if self._waiting:
            return self._waiting.pop()
        if self.best and rng.random() < self.weight:
            neighbour = self.space.mutate(rng.choice(self.best), rng)
            if self.violation(neighbour) == 0:
                return neighbour
        return super().sample(rng)
