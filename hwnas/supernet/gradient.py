"""Gradient: how a differentiable search turns logits into gates and derives a genotype. Alphas: the logits themselves."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.ops.factorized_reduce import FactorizedReduce
from hwnas.ops.identity import Identity
from hwnas.ops.zero import Zero
from hwnas.plugins import load, parse_call
from hwnas.space import Genotype, Space
from hwnas.supernet.gates import Gates

Options = list[list[int]]  # for each choice, numbers of options in ascending order


class Alphas(nn.Module):
    """One vector of logits per choice, small and random as in DARTS. `open`: the options that are still in the search."""

    def __init__(self, space: Space, seed: int, open: Options | None = None) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.logits = nn.ParameterList(1e-3 * torch.randn(len(c.options), generator=rng) for c in space.choices)
        self.open = open or [list(range(len(c.options))) for c in space.choices]

    def copy(self) -> list[Tensor]:
        """The values of the logits as they are now."""
        return [a.detach().clone() for a in self.logits]

    def log_probabilities(self) -> list[Tensor]:
        """Per choice the logarithms of the gates, minus infinity for options that are not open."""
        found = []
        for a, open in zip(self.logits, self.open, strict=True):
            if len(open) == len(a):
                found.append(a.log_softmax(0))
            else:
                closed = torch.full_like(a, float("-inf"))
                found.append(closed.index_put((torch.tensor(open, device=a.device),), a[open].log_softmax(0)))
        return found

    def probabilities(self) -> list[Tensor]:
        return [p.exp() for p in self.log_probabilities()]

    def gates(self) -> Gates:
        """All open options, weighted by their probabilities."""
        return [
            p if len(open) == len(p) else {o: p[o] for o in open}
            for p, open in zip(self.probabilities(), self.open, strict=True)
        ]

    def genotype(self, space: Space) -> Genotype:
        """The derived architecture: the strongest options under the space's rules."""
        return space.from_scores([p.tolist() for p in self.probabilities()])


class Gradient(ABC):
    """A gradient strategy. A file in `supernet/gradients` holds one subclass, `Gradient`, whose arguments follow the space.

    static: gates depend on alpha alone, so that a step can be captured. second_order: the gradient of alpha looks one step of
    the weights ahead. stages: searches one after another, each on a supernet of its own.
    """

    static = False
    second_order = False
    stages = 1

    def __init__(self, space: Space) -> None:
        self.space = space
        self.skip_options, self.zero_options = _options(space, (Identity, FactorizedReduce)), _options(space, (Zero,))

    @abstractmethod
    def weight_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        """What a step of the weights runs."""

    @abstractmethod
    def alpha_gates(self, alphas: Alphas, draws: random.Random) -> Gates:
        """What a step of alpha runs; its gradient must reach the logits."""

    def stage(self, number: int) -> None:  # noqa: B027 (most strategies need none of these)
        """Told before each stage."""

    def epoch(self, share: float) -> None:  # noqa: B027
        """Told before each epoch, with the share of the stage that is over."""

    def open(self, alphas: Alphas | None, stage: int) -> Options | None:
        """The options that a stage searches, from the alphas of the one before; None: all."""
        return None

    def after_alpha(self, alphas: Alphas, before: Sequence[Tensor]) -> None:  # noqa: B027
        """Told after each step of alpha, with the logits before it."""

    def derive(self, alphas: Alphas) -> Genotype:
        """The strongest options under the space's rules, as many zeros giving way as it takes to connect the network."""
        return self.strongest([p.tolist() for p in alphas.probabilities()])

    def strongest(self, scores: list[list[float]]) -> Genotype:
        """`Space.from_scores`, but where zeros cut the output off, the one that won by the least gives way, until none does."""
        scores = [list(row) for row in scores]
        while True:
            genotype = self.space.from_scores(scores)
            zeros = [i for i, o in enumerate(genotype) if o in self.zero_options[i] and self._rival(i, scores) > 0]
            if not zeros or not self._is_cut(genotype):
                return genotype
            weakest = max(zeros, key=lambda i: self._rival(i, scores) / scores[i][genotype[i]])
            for o in self.zero_options[weakest]:
                scores[weakest][o] = -1.0

    def _rival(self, choice: int, scores: list[list[float]]) -> float:
        """The score of the best option that is no zero."""
        return max((s for o, s in enumerate(scores[choice]) if o not in self.zero_options[choice]), default=0.0)

    def _is_cut(self, genotype: Genotype) -> bool:
        arch = simplify(self.space.decode(genotype))
        return any(isinstance(node.op, Zero) for node in arch.nodes)

    def skips(self, alphas: Alphas) -> str:
        """Skip connections among the edges that the derived genotype keeps, as `2 of 3`."""
        return "{} of {}".format(*self._count_skips(alphas))

    def collapsed(self, alphas: Alphas) -> bool:
        """Whether more than half of what the derived genotype keeps is skip connections (Zela et al. 2020)."""
        skips, kept = self._count_skips(alphas)
        return 2 * skips > kept

    def _count_skips(self, alphas: Alphas) -> tuple[int, int]:
        genotype = self.derive(alphas)
        skips = sum(o in skip for o, skip in zip(genotype, self.skip_options, strict=True))
        return skips, sum(o not in zero for o, zero in zip(genotype, self.zero_options, strict=True))


def make_gradient(text: str, space: Space) -> Gradient:
    """The gradient strategy that `name` or `name(argument=value, ...)` names."""
    name, arguments = parse_call(text, "gradient strategy")
    make = getattr(load("hwnas.supernet.gradients", name, "gradient strategy"), "Gradient", None)
    if not (inspect.isclass(make) and issubclass(make, Gradient)):
        raise UserError(
            "a gradient strategy's module defines Gradient, a subclass of hwnas.supernet.gradient.Gradient", got=name
        )
    known = list(inspect.signature(make).parameters)[1:]
    unknown = [a for a in arguments if a not in known]
    if unknown:
        raise UserError(
            f"gradient strategy {name} has no argument {unknown[0]!r}", remedy=f"known: {', '.join(known) or 'none'}"
        )
    return make(space, **arguments)


def gumbel(like: Tensor, draws: random.Random) -> Tensor:
    """Independent standard Gumbel numbers: a logit plus one of them is largest as often as its probability says."""
    rng = torch.Generator().manual_seed(draws.getrandbits(63))
    exponential = torch.empty(like.shape).exponential_(generator=rng)
    return -exponential.clamp_min(1e-30).log().to(like.device)


def sampled_genotype(alphas: Alphas, space: Space, draws: random.Random) -> Genotype:
    """A genotype drawn by the probabilities (the Gumbel-max trick), under the space's rules."""
    scores = [p + gumbel(p, draws) for p in alphas.log_probabilities()]
    return space.from_scores([s.tolist() for s in scores])


def _options(space: Space, kinds: tuple[type, ...]) -> list[set[int]]:
    """Per choice the options that are ops of these kinds wherever the choice stands alone over a slot."""
    found: list[set[int] | None] = [None] * len(space.choices)
    for slot in space.slots:
        if len(slot.choices) == 1:
            (i,) = space.choice_indices(slot)
            here = {o for o, op in enumerate(slot.options) if isinstance(op, kinds)}
            before = found[i]
            found[i] = here if before is None else before & here
    return [set() if f is None else f for f in found]
