"""cost: multiply-accumulates, parameters and peak activation memory of an arch, for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Activation, BatchNorm, Conv, Flatten, Linear, Prim
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec

_IN_PLACE = (BatchNorm, Activation, Flatten)  # batch norm is folded into its convolution where it runs


@dataclass(frozen=True)
class Cost:
    """`macs` of convolutions and linear layers; `params` that are trained; `peak_bytes` of activations alive at once."""

    macs: int
    params: int
    peak_bytes: int


def prim_macs(prim: Prim, xs: Sequence[TensorSpec]) -> int:
    """Multiply-accumulates: outputs times fan-in for convolutions and linear layers, none for the rest."""
    if isinstance(prim, Conv | Linear):
        weight = prim.weights(xs)[0]
        return prim.output(xs).elements * weight.fan_in
    return 0


@lru_cache(maxsize=1 << 16)
def op_macs_params(placed: PlacedOp) -> tuple[int, int]:
    """Multiply-accumulates and parameters of one placed op."""
    graph = placed.graph
    macs = sum(prim_macs(s.prim, [graph.specs[i] for i in s.inputs]) for s in graph.steps)
    return macs, sum(prod(w.shape) for _, w in graph.weights() if not w.buffer)


def cost(arch: Arch) -> Cost:
    """The cost of what runs: of the simplified arch."""
    simple = simplify(arch)
    pairs = [op_macs_params(simple.placed(node)) for node in simple.nodes]
    return Cost(sum(m for m, _ in pairs), sum(p for _, p in pairs), _peak_bytes(simple))


def _peak_bytes(arch: Arch) -> int:
    """The largest sum of live tensors when the prims run one after another, as the arch lists them.

    A tensor lives from the prim that writes it to the last that reads it. Batch norm, activations and flatten write over
    their input where nobody else reads it.
    """
    reads: list[tuple[int, ...]] = []  # of each prim: the values that it takes
    sizes = [arch.input.bytes]
    in_place: list[bool] = []
    value = {INPUT: 0}
    for node in arch.nodes:
        graph = arch.placed(node).graph
        local = [value[i] for i in node.inputs]
        for step in graph.steps:
            reads.append(tuple(local[i] for i in step.inputs))
            in_place.append(isinstance(step.prim, _IN_PLACE))
            local.append(len(sizes))
            sizes.append(graph.specs[len(local) - 1].bytes)
        value[node.name] = local[graph.output]
    last = {v: i for i, inputs in enumerate(reads) for v in inputs}
    last[value[arch.output]] = len(reads)
    live = peak = sizes[0]
    for i, inputs in enumerate(reads):
        freed = sum(sizes[v] for v in set(inputs) if last[v] == i)
        written = i + 1  # prim i writes value i + 1
        beside = 0 if in_place[i] and freed else sizes[written]
        peak = max(peak, live + beside)
        live += sizes[written] - freed
        if written not in last:  # nobody reads it
            live -= sizes[written]
    return peak
