"""fuse: the values of a merged program that are computed in one pass become one step.

As in lower/fusion, batch norm and activation join what they follow; an activation that only convolutions read is applied by
them as they load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from hwnas.ir.prims import Activation, ActivationKind, Add, BatchNorm, Conv, Flatten, Linear, Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.supernet.merge import Program, Weight


class Norm(NamedTuple):
    """A batch norm by statistics of its own; scale and shift if it is affine."""

    eps: float
    scale: Weight | None
    shift: Weight | None


@dataclass(frozen=True)
class Step:
    """Writes `after(norm(prim(before(x), ...)))`. A norm or an activation of its own is an Add of one term."""

    prim: Prim
    inputs: tuple[int, ...]
    spec: TensorSpec
    weight: Weight | None = None
    bias: Weight | None = None
    before: ActivationKind | None = None
    norm: Norm | None = None
    after: ActivationKind | None = None


@dataclass(frozen=True)
class Fused:
    """Value 0 is the images, `steps[i]` writes value i + 1. `outputs` are the candidates' logits."""

    input: TensorSpec
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def spec(self, value: int) -> TensorSpec:
        return self.steps[value - 1].spec if value else self.input


def fuse(program: Program) -> Fused:
    readers: list[list[Prim | None]] = [[] for _ in range(len(program.values) + 1)]  # None: the caller
    for value in program.values:
        for i in value.inputs:
            readers[i].append(value.prim)
    for output in set(program.outputs):
        readers[output].append(None)

    steps: list[Step] = []
    place = {0: 0}  # of a value: which step's value it is
    before: dict[int, tuple[int, ActivationKind]] = {}  # an activation that its readers apply: of which step's value
    for index, (prim, inputs, weights, spec) in enumerate(program.values, start=1):
        source = inputs[0]
        joins = len(readers[source]) == 1 and source not in before and source > 0
        last = steps[place[source] - 1] if joins else None
        if isinstance(prim, Flatten) and program.spec(source).dims[1:] in ((), (1, 1)):
            place[index] = place[source]  # a linear layer takes [c, 1, 1] as it is
            continue
        if isinstance(prim, BatchNorm):
            norm = Norm(prim.eps, *(weights or (None, None)))
            if last and not last.norm and not last.after:
                steps[place[source] - 1] = replace(last, norm=norm)
                place[index] = place[source]
                continue
            step = Step(Add(), (place[source],), spec, norm=norm)
        elif isinstance(prim, Activation):
            if last and not last.after:
                steps[place[source] - 1] = replace(last, after=prim.kind)
                place[index] = place[source]
                continue
            if source not in before and all(isinstance(reader, Conv) for reader in readers[index]):
                before[index] = place[source], prim.kind
                continue
            step = Step(Add(), (place[source],), spec, after=prim.kind)
        elif isinstance(prim, Conv | Linear):
            value, kind = before[source] if source in before else (place[source], None)
            step = Step(prim, (value,), spec, weights[0], weights[1] if prim.bias else None, kind)
        else:
            step = Step(prim, tuple(place[i] for i in inputs), spec)
        steps.append(step)
        place[index] = len(steps)
    return Fused(program.input, tuple(steps), tuple(place[o] for o in program.outputs))
