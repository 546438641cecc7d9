"""race: candidates that a better one has left behind stop before they have seen all images.

Two candidates are compared on the images that exactly one of them gets right. Were the first no better than the second over the
whole split, then each such image of a random sample would speak for it with a chance of one half at most, and it would win
`a` to `b` no more often than the tail of a binomial says: the sign test. (Drawing without replacement makes that tail only
lighter: of the same mean, the hypergeometric distribution is the less spread one; Hoeffding 1963, section 6.) With the tests of
all looks and all opponents added up, the best candidate is stopped with a probability of `error` at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from hwnas.errors import UserError

Right = NDArray[np.bool_]  # of some candidates, which images they get right: [candidates, images]


@dataclass
class Race:
    """`error`: the probability, over the order of the images, that the best of a batch is stopped by mistake.

    looks: how often candidates are compared, each time on twice as many images as the time before, the last on half of all.
    The best candidate so far runs along in later batches, on what it got right before.
    """

    error: float = 0.05
    looks: int = 4
    incumbent: Right = field(default_factory=lambda: np.zeros((0, 0), bool))  # of the best so far, [0 or 1, all images]

    def __post_init__(self) -> None:
        if not 0 < self.error < 1 or self.looks < 1:
            raise UserError("a race has an error between 0 and 1 and at least one look", got=(self.error, self.looks))

    def ends(self, images: int) -> list[int]:
        """After how many images there is a look; the last is after all of them, and stops nobody."""
        return [*sorted({max(1, images >> i) for i in range(1, self.looks + 1)} - {images}), images]

    def survivors(self, right: Right, images: int, candidates: int | None = None) -> NDArray[np.int64]:
        """Which of the candidates go on, given what they got right so far, [candidates, seen], and how many images there are.

        Opponents are those who are still in the race and the incumbent. candidates: how many there were in the beginning, in
        all batches: each of them could be an opponent at any look, and the error is shared out among all.
        """
        seen = right.shape[1]
        opponents = np.concatenate([right, self.incumbent[:, :seen]]) if len(self.incumbent) else right
        wins = opponents.astype(np.float32) @ (~right).T.astype(np.float32)  # [opponent, candidate]
        losses = (~opponents).astype(np.float32) @ right.T.astype(np.float32)
        level = self.error / (self.looks * max(candidates or len(opponents), 1))
        chance = binom.sf(wins - 1, wins + losses, 0.5)  # of as many wins or more
        behind = (wins > losses) & ((chance <= level) | (wins - losses > images - seen))
        return np.flatnonzero(~behind.any(0))

    def finish(self, right: Right) -> None:
        """Those who have seen all images, [candidates, images]: the best of them and the incumbent is the next incumbent."""
        everyone = np.concatenate([self.incumbent, right]) if len(self.incumbent) else right
        if len(everyone):
            self.incumbent = everyone[[everyone.sum(1).argmax()]]


def shuffled(images: int, seed: int) -> NDArray[np.int64]:
    """The order in which a race looks at the images."""
    return np.random.default_rng([seed, images]).permutation(images)
