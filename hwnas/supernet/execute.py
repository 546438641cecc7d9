"""execute: some candidates of a merged program, ready to run. One form for every way to run them; this one is PyTorch's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir.prims import Linear
from hwnas.lower.torch import ACTIVATIONS, Mode, apply_prim
from hwnas.supernet.fuse import Norm, Step, fuse
from hwnas.supernet.merge import Program, Weight
from hwnas.supernet.schedule import Schedule

Weights = Callable[[Weight], Tensor]
TILE = 512  # images that PyTorch takes through a program at once


class Execution(ABC):
    """All candidates of a program, their logits in its order."""

    @abstractmethod
    def memory(self, images: int) -> int:
        """Bytes of activations alive at once when a batch of so many images is recalibrated."""

    @abstractmethod
    def recalibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        """The batch-norm statistics become the mean, over batches [n, *dims] of one size, of what each batch is normalised by.

        A batch at a time, or more as far as `limit` bytes of activations allow.
        """

    @abstractmethod
    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        """[candidates, n, classes], of the `wanted` candidates in that order if given, by those statistics.

        As many images at a time as `limit` bytes of activations allow, but one at least.
        """


Load = Callable[[Sequence[int]], Execution]  # of some candidates


def in_parts(
    candidates: Sequence[int], load: Load, limit: int, images: int, at_most: int | None = None
) -> Iterator[tuple[Sequence[int], Execution]]:
    """All candidates, as many side by side as `limit` bytes of activations allow for a batch of so many images.

    Yields candidates, in their order, and how they run. Parts share nothing: what two have in common runs twice. Where there
    are to be `at_most` in a part, because others are prepared meanwhile, the first parts are smaller, since nobody works before
    the first is ready. UserError if one candidate by itself needs more memory.
    """
    left = candidates
    most = at_most or len(left)
    size = most if at_most is None else max(1, at_most // 8)
    while left:
        size = min(size, len(left))
        part = load(left[:size])
        memory = part.memory(images)
        if memory <= limit:
            yield left[:size], part
            left = left[size:]
            size = min(most, size + (size + 1) // 2)  # which does not take longer than what runs meanwhile
        elif size > 1:
            most = size = max(1, min(size - 1, size * limit // memory))
        else:
            needed = max(load([c]).memory(images) for c in candidates)
            raise UserError(
                f"one candidate by itself, {images} images at a time, needs more memory than its limit", got=f"{limit} bytes",
                remedy=f"allow {needed} bytes",
            )  # fmt: skip


Normalise = Callable[[int, Norm, Tensor], Tensor]  # of a step by its number


class TorchExecution(Execution):
    """Step after step, depth first, with PyTorch's operators. Statistics and logits lie where the weights lie."""

    def __init__(self, program: Program, weights: Weights) -> None:
        self.fused, self.weights = fuse(program), weights
        self.everyone = range(len(program.outputs))
        step_bytes = [(step.spec.bytes, self._scratch_bytes(step)) for step in self.fused.steps]
        self.schedule = Schedule(self.fused, program.input.bytes, step_bytes)
        self.plan = self.schedule.plan(self.everyone, breadth=False)
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}  # of a step's norm: mean and variance

    def memory(self, images: int) -> int:
        return images * self.plan.peak_bytes

    def _scratch_bytes(self, step: Step) -> int:
        """An input with an activation of its own, or the output before its norm or activation."""
        before = self.fused.spec(step.inputs[0])
        return max(before.bytes if step.before else 0, step.spec.bytes if step.norm or step.after else 0)

    def recalibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        self.statistics = {}
        for count, images in enumerate(batches, start=1):

            def normalise(number: int, norm: Norm, x: Tensor, momentum: float = 1 / count) -> Tensor:
                running = self.statistics.setdefault(number, (x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])))
                return F.batch_norm(x, *running, *self._affine(norm), True, momentum, norm.eps)

            self._run(images, normalise, self.everyone)

    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        def normalise(number: int, norm: Norm, x: Tensor) -> Tensor:
            return F.batch_norm(x, *self.statistics[number], *self._affine(norm), False, 0.0, norm.eps)

        candidates = self.everyone if wanted is None else wanted
        tile = min(TILE, max(1, limit // self.plan.peak_bytes))
        parts: Sequence[Tensor] = images.split(tile)  # type: ignore[no-untyped-call]
        return torch.cat([self._run(part, normalise, candidates) for part in parts], 1)

    def _run(self, images: Tensor, normalise: Normalise, candidates: Sequence[int]) -> Tensor:
        """In the order of all candidates, which some of them never need more memory in; in one of their own they may."""
        needed = self.schedule.needed(candidates)
        values = {0: images}
        for stage, dead in zip(self.plan.stages, self.plan.dead, strict=True):
            for number in stage:
                if number not in needed:
                    continue
                step = self.fused.steps[number]
                y = self._apply(step, [values[i] for i in step.inputs])
                if step.norm:
                    y = normalise(number, step.norm, y)
                if step.after:
                    y = ACTIVATIONS[step.after](y)
                values[number + 1] = y
            for value in dead:
                values.pop(value, None)
        return torch.stack([values[self.fused.outputs[c]] for c in candidates])

    def _apply(self, step: Step, xs: list[Tensor]) -> Tensor:
        if step.before:
            xs = [ACTIVATIONS[step.before](xs[0])]
        if isinstance(step.prim, Linear):
            xs = [xs[0].flatten(1)]
        found = {w.name: self.weights(w) for w in (step.weight, step.bias) if w}
        return apply_prim(step.prim, xs, found.__getitem__, Mode(training=False))

    def _affine(self, norm: Norm) -> tuple[Tensor | None, Tensor | None]:
        return (self.weights(norm.scale), self.weights(norm.shift)) if norm.scale and norm.shift else (None, None)
