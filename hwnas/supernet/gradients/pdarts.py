"""P-DARTS (Chen et al. 2019): depth grows over stages while options are dropped, and skip connections are held down.

Each stage is a first-order DARTS search on a deeper supernet over the options that did best in the stage before. In training,
skip connections are dropped at random, less and less within a stage (operation dropout); the derived genotype keeps a bounded
number of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hwnas.errors import UserError
from hwnas.space import Genotype, Space
from hwnas.supernet import gradient
from hwnas.supernet.gates import Gates
from hwnas.supernet.gradient import Alphas, Options


class Gradient(gradient.Gradient):
    """`kept`: the share of the options that each stage searches; 8, 5 and 3 of 8 in the paper.

    `dropout`: the chance of a skip connection to be dropped at the start of each stage; it falls to zero by its end.
    `most_skips`: skip connections in the derived genotype. The paper drops the elements of a skip connection's output; here a
    batch goes without the connection, and what remains is scaled up.
    """

    def __init__(
        self,
        space: Space,
        kept: Sequence[float] = (1.0, 0.625, 0.375),
        dropout: Sequence[float] = (0.0, 0.4, 0.7),
        most_skips: int = 2,
    ) -> None:
        super().__init__(space)
        shrinks = len(kept) > 0 and all(0 < b <= a <= 1 for a, b in zip((1.0, *kept), kept, strict=False))
        if not shrinks or len(dropout) != len(kept) or not all(0 <= d < 1 for d in dropout) or most_skips < 0:
            raise UserError(
                "pdarts needs falling shares of options up to 1, a dropout below 1 for each, and a bound of skips",
                got=(tuple(kept), tuple(dropout), most_skips),
            )
        self.kept, self.dropout, self.most_skips = tuple(kept), tuple(dropout), most_skips
        self.stages = len(kept)
        self.chance = self._first = self.dropout[0]

    def stage(self, number: int) -> None:
        self._first = self.dropout[number]

    def epoch(self, share: float) -> None:
        self.chance = self._first * (1 - share)

    def open(self, alphas: Alphas | None, stage: int) -> Options | None:
        if alphas is None:
            return None
        found: Options = []
        for choice, p in zip(self.space.choices, alphas.probabilities(), strict=True):
            count = max(1, round(self.kept[stage] * len(choice.options)))
            found.append(sorted(p.topk(count).indices.tolist()))
        return found

    def weight_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return self._dropped(alphas, draws)

    def alpha_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return self._dropped(alphas, draws)

    def _dropped(self, alphas: Alphas, draws: random.Random) -> Gates:
        gates = []
        for p, open, skips in zip(alphas.probabilities(), alphas.open, self.skip_options, strict=True):
            factors = {o: float(draws.random() >= self.chance) / (1 - self.chance) for o in open if o in skips}
            weights = {o: p[o] * factors.get(o, 1.0) for o in open}
            gates.append(weights)
        return gates

    def derive(self, alphas: Alphas) -> Genotype:
        """The strongest options, the weakest skip connections giving way to the next best until few enough are left."""
        scores = [p.tolist() for p in alphas.probabilities()]
        while True:
            genotype = self.strongest(scores)
            skips = [i for i, o in enumerate(genotype) if o in self.skip_options[i]]
            removable = [i for i in skips if set(alphas.open[i]) - self.skip_options[i]]
            if len(skips) <= self.most_skips or not removable:
                return genotype
            weakest = min(removable, key=lambda i: scores[i][genotype[i]])
            for o in self.skip_options[weakest]:
                scores[weakest][o] = -1.0
