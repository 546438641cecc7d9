"""ProxylessNAS (Cai et al. 2019): binary gates. Weights train on one drawn path, alpha on two options a choice.

Two options are drawn by their probabilities, one of them is on. The gradient of the loss to both binary gates stands for that
to their probabilities (equation 4); after the step both logits are shifted so that the probabilities of all others stay
(section 3.2.1).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from hwnas.supernet import gradient
from hwnas.supernet.gates import Gates
from hwnas.supernet.gradient import Alphas, gumbel, sampled_genotype


class Gradient(gradient.Gradient):
    """Its single paths need the space's rules; draws among the choices of a keep follow them."""

    def weight_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        return sampled_genotype(alphas, self.space, draws)

    def alpha_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        gates: list[int | dict[int, Tensor]] = []
        self._pairs: list[tuple[int, ...]] = []
        for logits, open, log_p in zip(alphas.logits, alphas.open, alphas.log_probabilities(), strict=True):
            noisy = log_p.detach() + gumbel(log_p, draws)  # its two largest are two draws without replacement
            pair = tuple(noisy.topk(min(2, len(open))).indices.tolist())
            self._pairs.append(pair)
            if len(pair) == 1:
                gates.append(pair[0])
                continue
            soft = logits[list(pair)].softmax(0)
            on = int(draws.random() >= float(soft[0].detach()))
            binary = torch.nn.functional.one_hot(torch.tensor(on), 2).to(soft)
            through = binary + soft - soft.detach()
            gates.append({o: through[k] for k, o in enumerate(pair)})
        return gates

    def after_alpha(self, alphas: Alphas, before: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for logits, old, pair in zip(alphas.logits, before, self._pairs, strict=True):
                both = list(pair)
                moved = logits[both]
                logits.copy_(old)  # what was not drawn does not move, by decay or momentum neither
                logits[both] = moved + old[both].logsumexp(0) - moved.logsumexp(0)
