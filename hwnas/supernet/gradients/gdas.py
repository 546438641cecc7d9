"""GDAS (Dong and Yang 2019): each choice draws one option by Gumbel-softmax, and only that one is computed.

Forward the gate is one; backward it is the option's soft gate (straight-through), whose gradient reaches all logits.
"""

from __future__ import annotations

import random

from torch import Tensor

from hwnas.errors import UserError
from hwnas.space import Space
from hwnas.supernet import gradient
from hwnas.supernet.gates import Gates
from hwnas.supernet.gradient import Alphas, gumbel


class Gradient(gradient.Gradient):
    """The temperature falls from `start` to `end` over the search; the paper's are 10 and 0.1."""

    def __init__(self, space: Space, start: float = 10.0, end: float = 0.1) -> None:
        super().__init__(space)
        if not 0 < end <= start:
            raise UserError("the temperature of gdas falls from start to end, both positive", got=(start, end))
        self.start, self.end = start, end
        self.temperature = float(start)

    def epoch(self, share: float) -> None:
        self.temperature = self.start + (self.end - self.start) * share

    def weight_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return self.alpha_gates(alphas, draws)

    def alpha_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        gates: list[dict[int, Tensor]] = []
        for log_p in alphas.log_probabilities():
            soft = ((log_p + gumbel(log_p, draws)) / self.temperature).softmax(0)
            drawn = int(soft.argmax())
            gates.append({drawn: 1 + soft[drawn] - soft[drawn].detach()})
        return gates
