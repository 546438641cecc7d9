"""kernels: what a runtime launches for an arch, once it has fused what it fuses, as ONNX Runtime does on a processor.

Equal weightless prims of one value are computed once. Batch norm folds into its convolution. A convolution that nobody else
reads takes one addition and then one activation into itself. What an op costs in its place differs from what it costs alone
by what is fused or shared across its borders.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.graph import Graph
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Activation, Add, BatchNorm, Conv, Flatten, Linear, Pool, Prim, Scale
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec

FUSED_ADD, FUSED_ACTIVATION = "fused add", "fused activation"
_FUSIBLE = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "hardsigmoid")
_SHARED = (Activation, Add, Pool, Scale)


class Kernel(NamedTuple):
    """A prim's name, or what was fused, and the tensor that it writes."""

    kind: str
    output: TensorSpec

    @property
    def launches(self) -> bool:
        return self.kind not in (FUSED_ADD, FUSED_ACTIVATION)


class _Value(NamedTuple):
    prim: Prim | None  # None for an input
    inputs: tuple[int, ...]
    spec: TensorSpec


class _Program:
    """Prims in order, each writing one value; a sum of several terms is a chain of sums of two."""

    def __init__(self) -> None:
        self.values: list[_Value] = []
        self._known: dict[tuple[Prim, tuple[int, ...]], int] = {}

    def input(self, spec: TensorSpec) -> int:
        self.values.append(_Value(None, (), spec))
        return len(self.values) - 1

    def append(self, graph: Graph, inputs: list[int]) -> int:
        """Writes an op's prims over these values and returns its output."""
        local = list(inputs)
        for step in graph.steps:
            terms, spec = [local[i] for i in step.inputs], graph.specs[len(local)]
            if isinstance(step.prim, Add):
                total = terms[0]
                for term in terms[1:]:
                    total = self._write(step.prim, (total, term), spec)
                local.append(total)
            else:
                local.append(self._write(step.prim, tuple(terms), spec))
        return local[graph.output]

    def _write(self, prim: Prim, inputs: tuple[int, ...], spec: TensorSpec) -> int:
        key = prim, inputs
        if not isinstance(prim, _SHARED) or key not in self._known:
            self.values.append(_Value(prim, inputs, spec))
            self._known[key] = len(self.values) - 1
        return self._known[key]

    def kernels(self, output: int) -> Counter[Kernel]:
        readers = Counter(i for value in self.values for i in value.inputs)
        readers[output] += 1
        takes_add: set[int] = set()  # values that a kernel writes into which a sum could still be fused
        takes_activation: set[int] = set()
        found: Counter[Kernel] = Counter()
        for index, (prim, inputs, spec) in enumerate(self.values):
            if prim is None or isinstance(prim, Flatten):
                continue
            alone = [i for i in inputs if readers[i] == 1]
            kind = type(prim).__name__.lower()
            if isinstance(prim, Conv | Linear | BatchNorm):
                takes_activation.add(index)
                if not isinstance(prim, Linear):
                    takes_add.add(index)
                if isinstance(prim, BatchNorm) and alone and isinstance(self.values[alone[0]].prim, Conv):
                    continue  # folded
            elif isinstance(prim, Add) and any(i in takes_add for i in alone):
                kind = FUSED_ADD
                takes_activation.add(index)
            elif isinstance(prim, Activation) and prim.kind in _FUSIBLE and any(i in takes_activation for i in alone):
                kind = FUSED_ACTIVATION
            found[Kernel(kind, spec)] += 1
        return found


def kernels(arch: Arch) -> Counter[Kernel]:
    """Of the simplified arch, how often each occurs; what is fused into another is counted beside it."""
    simple = simplify(arch)
    program = _Program()
    values = {INPUT: program.input(simple.input)}
    for node in simple.nodes:
        values[node.name] = program.append(simple.placed(node).graph, [values[i] for i in node.inputs])
    return program.kernels(values[simple.output])


@lru_cache(maxsize=1 << 16)
def op_kernels(placed: PlacedOp) -> Counter[Kernel]:
    """Of an op by itself. Inputs of one spec are one value, as in a profile."""
    program = _Program()
    inputs = {spec: program.input(spec) for spec in placed.inputs}
    return program.kernels(program.append(placed.graph, [inputs[spec] for spec in placed.inputs]))
