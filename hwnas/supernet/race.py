"""race: candidates that a better one has left behind stop before they have seen all images.

Two candidates are compared on the images that exactly one of them gets right. Were the first no better than the second over the
whole split, then each such image of a random sample would speak for it with a chance of one half at most, and it would win
`a` to `b` no more often than the tail of a binomial says: the sign test. (Drawing without replacement makes that tail only
lighter: of the same mean, the hypergeometric distribution is the less spread one; Hoeffding 1963, section 6.) With the tests of
all looks and all opponents added up, the best candidate is stopped with a probability of `error` at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from hwnas.errors import UserError

Right = NDArray[np.bool_]  # which images a candidate gets right, or several of them: [images], [candidates, images]
Answer = Callable[[NDArray[np.int64], int, int], Right]
"""Of some candidates, by number: which of the images from the first number to the second they get right."""


@dataclass(frozen=True)
class Race:
    """`error`: the probability, over the order of the images, that the best of all candidates is stopped by mistake.

    looks: how often candidates are compared, each time on twice as many images as the time before, the last on half of all.
    """

    error: float = 0.05
    looks: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.error < 1 or self.looks < 1:
            raise UserError("a race has an error between 0 and 1 and at least one look", got=(self.error, self.looks))

    def run(
        self, answer: Answer, heat: int, images: int, entrants: int, incumbent: Right | None = None
    ) -> tuple[NDArray[np.int64], Right | None]:
        """Takes a heat of so many candidates over the images, as far as they get: who has seen all of them.

        entrants: how many candidates there are in all heats of the race. incumbent: what the best of the heats before gets
        right; what the best until now does is returned too.
        """
        alive, right, start = np.arange(heat), np.zeros((heat, 0), bool), 0
        for end in self._ends(images):
            if not len(alive):
                return alive, incumbent
            right = np.concatenate([right, answer(alive, start, end)], 1)
            if end < images:
                go_on = self.survivors(right, images, entrants, incumbent)
                alive, right = alive[go_on], right[go_on]
            start = end
        best = right[right.sum(1).argmax()]
        return alive, best if incumbent is None or best.sum() > incumbent.sum() else incumbent

    def survivors(self, right: Right, images: int, entrants: int, incumbent: Right | None = None) -> NDArray[np.int64]:
        """Which of the candidates go on, given what they got right so far, [candidates, seen], and how many images there are.

        Opponents are the candidates themselves and the incumbent. Any of the entrants could be one at any look, so the error is
        shared out among all of them: who is left by then was chosen by the same images.
        """
        seen = right.shape[1]
        opponents = right if incumbent is None else np.concatenate([right, incumbent[None, :seen]])
        wins = opponents.astype(np.float32) @ (~right).T.astype(np.float32)  # [opponent, candidate]
        losses = (~opponents).astype(np.float32) @ right.T.astype(np.float32)
        chance = binom.sf(wins - 1, wins + losses, 0.5)  # of as many wins or more
        behind = (wins > losses) & ((chance <= self.error / (self.looks * entrants)) | (wins - losses > images - seen))
        return np.flatnonzero(~behind.any(0))

    def _ends(self, images: int) -> list[int]:
        """After how many images there is a look; the last is after all of them, and stops nobody."""
        return [*sorted({max(1, images >> i) for i in range(1, self.looks + 1)} - {images}), images]


def shuffled(images: int, seed: int) -> NDArray[np.int64]:
    """The order in which a race looks at the images."""
    return np.random.default_rng([seed, images]).permutation(images)
