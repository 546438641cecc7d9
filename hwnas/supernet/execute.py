"""execute: runs the steps of one part of a merged program, over training batches for their statistics or to the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hwnas.ir.prims import Linear
from hwnas.ir.tensor import TensorSpec
from hwnas.lower.torch import ACTIVATIONS, Mode, apply_prim
from hwnas.supernet.merge import Norm, Program, Step, Weight
from hwnas.supernet.schedule import Part

Statistics = dict[int, tuple[Tensor, Tensor]]  # of each step with a norm: mean and variance of its channels
Weights = Callable[[Weight], Tensor]


@dataclass(frozen=True)
class Executor:
    """A program over the weights that `weights` finds. No gradients; statistics and logits lie where the images lie."""

    program: Program
    weights: Weights

    def value_bytes(self, spec: TensorSpec) -> int:
        return spec.bytes

    def scratch_bytes(self, program: Program, step: Step) -> int:
        """An input with an activation of its own, or the output before its norm or activation."""
        source = step.inputs[0]
        before = program.input if source == 0 else program.steps[source - 1].spec
        return max(before.bytes if step.before else 0, step.spec.bytes if step.norm or step.after else 0)

    def statistics(self, part: Part, batches: Iterable[Tensor]) -> Statistics:
        """The mean, over the batches [n, *dims], of the batch-norm statistics that each batch normalises itself by."""
        found: Statistics = {}

        for count, images in enumerate(batches, start=1):

            def normalise(number: int, norm: Norm, x: Tensor, momentum: float = 1 / count) -> Tensor:
                running = found.setdefault(number, (x.new_empty(x.shape[1]).zero_(), x.new_empty(x.shape[1]).zero_()))
                return F.batch_norm(x, *running, *self._affine(norm), True, momentum, norm.eps)

            self._run(part, images, normalise)
        return found

    def logits(self, part: Part, statistics: Statistics, images: Tensor) -> list[Tensor]:
        """Of each of the part's candidates, [n, classes]."""

        def normalise(number: int, norm: Norm, x: Tensor) -> Tensor:
            return F.batch_norm(x, *statistics[number], *self._affine(norm), False, 0.0, norm.eps)

        return self._run(part, images, normalise)

    def _run(self, part: Part, images: Tensor, normalise: Callable[[int, Norm, Tensor], Tensor]) -> list[Tensor]:
        values = {0: images}
        for stage, dead in zip(part.stages, part.dead, strict=True):
            for number in stage:
                step = self.program.steps[number]
                y = self._apply(step, [values[i] for i in step.inputs])
                if step.norm:
                    y = normalise(number, step.norm, y)
                if step.after:
                    y = ACTIVATIONS[step.after](y)
                values[number + 1] = y
            for value in dead:
                del values[value]
        return [values[self.program.outputs[c]] for c in part.candidates]

    def _apply(self, step: Step, xs: list[Tensor]) -> Tensor:
        if step.before:
            xs = [ACTIVATIONS[step.before](xs[0])]
        weights = {"weight": step.weight, "bias": step.bias}
        found = {name: self.weights(weight) for name, weight in weights.items() if weight}
        if isinstance(step.prim, Linear):
            xs = [xs[0].flatten(1)]
        return apply_prim(step.prim, xs, found.__getitem__, Mode(training=False))

    def _affine(self, norm: Norm) -> tuple[Tensor | None, Tensor | None]:
        return (self.weights(norm.scale), self.weights(norm.shift)) if norm.scale and norm.shift else (None, None)
