"""DARTS (Liu et al. 2019): softmax gates over all options; first order, or second order with the weights one step ahead."""

from __future__ import annotations

import random

from hwnas.errors import UserError
from hwnas.space import Space
from hwnas.supernet import gradient
from hwnas.supernet.gates import Gates
from hwnas.supernet.gradient import Alphas


class Gradient(gradient.Gradient):
    """`order` 1 takes the weights as given, 2 looks one step ahead (equation 7), at three times the price."""

    static = True

    def __init__(self, space: Space, order: int = 1) -> None:
        super().__init__(space)
        if order not in (1, 2):
            raise UserError("the order of darts is 1 or 2", got=order)
        self.second_order = order == 2
        self.static = order == 1

    def weight_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return alphas.gates()

    def alpha_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return alphas.gates()
