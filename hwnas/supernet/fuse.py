"""fuse: the values of a merged program that are computed in one pass become one step.

As in lower/fusion, batch norm and activation join what they follow; an activation that only convolutions read is applied by
them as they load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hwnas.ir.prims import Activation, ActivationKind, Add, BatchNorm, Conv, Flatten, Linear, Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.supernet.merge import Program, Weight


class Norm(NamedTuple):
    """A batch norm by statistics of its own; scale and shift if it is affine."""

    eps: float
    scale: Weight | None
    shift: Weight | None


@dataclass(eq=False, slots=True)
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


SUM = Add()  # one object, by whose place in memory tasks of one form are known


def fuse(program: Program) -> Fused:
    """The program's steps, in an order in which each comes after its inputs."""
    values = program.values
    readers = [0] * (len(values) + 1)
    others = [False] * (len(values) + 1)  # some reader is no convolution
    for prim, inputs, _, _ in values:
        for i in inputs:
            readers[i] += 1
            others[i] |= type(prim) is not Conv
    for output in set(program.outputs):
        readers[output] += 1
        others[output] = True

    steps: list[Step] = []
    place = [0] * (len(values) + 1)  # of a value: which step's value it is
    before: dict[int, ActivationKind] = {}  # values that their readers make of `place` as they load
    for index, (prim, inputs, weights, spec) in enumerate(values, start=1):
        source, kind = inputs[0], type(prim)
        place[index] = place[source]
        if kind is Conv or kind is Linear:
            bias = weights[1] if len(weights) > 1 else None
            steps.append(Step(prim, (place[source],), spec, weights[0], bias, before.get(source)))
        elif isinstance(prim, BatchNorm | Activation):
            last = steps[place[source] - 1] if readers[source] == 1 and source and source not in before else None
            if last is None or last.after or (last.norm and isinstance(prim, BatchNorm)):
                if isinstance(prim, Activation) and source not in before and not others[index]:
                    before[index] = prim.kind
                    continue
                last = Step(SUM, (place[source],), spec)
                steps.append(last)
                place[index] = len(steps)
            if isinstance(prim, Activation):
                last.after = prim.kind
            else:
                last.norm = Norm(prim.eps, *(weights or (None, None)))
            continue
        elif kind is Flatten and program.spec(source).dims[1:] in ((), (1, 1)):
            readers[index] += readers[source] - 1  # who reads its source reads what it leaves in place
            continue  # a linear layer takes [c, 1, 1] as it is
        else:
            steps.append(Step(prim, tuple(place[i] for i in inputs), spec))
        place[index] = len(steps)
    return Fused(program.input, tuple(steps), tuple(place[o] for o in program.outputs))
