"""features: an arch as numbers for a latency predictor. They depend on the arch alone, so predictors are free of the space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log

from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add, Conv, Linear, Pool, Zero
from hwnas.ir.simplify import placed_ops
from hwnas.lower.cost import op_macs_params, prim_macs
from hwnas.lower.fusion import Kernel, kernels, op_kernels


@dataclass(frozen=True)
class Features:
    """Of the simplified arch: how often each placed op occurs, and sums over them.

    `nodes`: kernels that a runtime launches once it has fused what it fuses. `boundary_elements`: elements of the tensors
    between ops, which a runtime writes and reads again.
    """

    ops: Mapping[PlacedOp, int]
    count: int
    nodes: int
    macs: int
    weight_bytes: int
    boundary_elements: int


@lru_cache(maxsize=1 << 12)
def features(arch: Arch) -> Features:
    ops = Counter(placed_ops(arch))
    nodes = macs = params = boundary = 0
    for placed, count in ops.items():
        op_macs, op_params = op_macs_params(placed)
        nodes += count * fused_nodes(placed)
        macs += count * op_macs
        params += count * op_params
        boundary += count * placed.output.elements
    return Features(dict(ops), sum(ops.values()), nodes, macs, 4 * params, boundary)


def fused_nodes(placed: PlacedOp) -> int:
    """Kernels that an op is by itself."""
    return sum(count for kernel, count in op_kernels(placed).items() if kernel.launches)


@lru_cache(maxsize=1 << 12)
def saved_kernels(arch: Arch) -> Counter[Kernel]:
    """Kernels that the ops of an arch are by themselves, less those that the arch is; negative where it has more.

    Not to be written to: it is handed out again.
    """
    saved = Counter(kernels(arch))
    for kernel in saved:
        saved[kernel] = -saved[kernel]
    for placed, count in Counter(placed_ops(arch)).items():
        for kernel, times in op_kernels(placed).items():
            saved[kernel] += count * times
    return Counter({kernel: count for kernel, count in saved.items() if count})


@lru_cache(maxsize=1 << 16)
def describe_op(placed: PlacedOp) -> tuple[float, ...]:
    """A placed op as a point among others, near to those that a device treats alike: logarithms of its sizes, to the base 2.

    Input and output elements, output channels, fused nodes, weight bytes; multiply-accumulates of pointwise, of grouped and
    of other convolutions and linear layers, and window elements of pools; the elements that sums add up.
    """
    graph = placed.graph
    pointwise = grouped = dense = pooled = added = largest = 0
    zeros = 0
    for step in graph.steps:
        specs = [graph.specs[i] for i in step.inputs]
        prim, macs = step.prim, prim_macs(step.prim, specs)
        if isinstance(prim, Conv):
            largest = max(largest, prim.kernel)
            if prim.groups > 1:
                grouped += macs
            elif prim.kernel == 1:
                pointwise += macs
            else:
                dense += macs
        elif isinstance(prim, Linear):
            dense += macs
        elif isinstance(prim, Pool):
            pooled += prim.output(specs).elements * prim.kernel**2
        elif isinstance(prim, Add):
            added += specs[0].elements * len(specs)
        elif isinstance(prim, Zero):
            zeros += 1
    sizes = (
        sum(x.elements for x in placed.inputs), placed.output.elements, placed.output.dims[0], fused_nodes(placed),
        4 * op_macs_params(placed)[1], pointwise, grouped, dense, pooled, added, largest, zeros,
    )  # fmt: skip
    return tuple(log(1 + size, 2) for size in sizes)
