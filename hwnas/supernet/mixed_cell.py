"""Cells of DARTS edges, which the native mixed cell runs: finding them in a space, and their weights in the kernel's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hwnas.ir.arch import Node
from hwnas.kernels.mixed_cell import CONVS, DW_PER_CHANNEL, edges, mixed_cell, reduced_edges
from hwnas.ops.concat import Concat
from hwnas.ops.dil_conv import DilConv
from hwnas.ops.factorized_reduce import FactorizedReduce
from hwnas.ops.sep_conv import SepConv
from hwnas.ops.sum import Sum
from hwnas.space import Slot, Space
from hwnas.spaces.darts import edge_ops
from hwnas.supernet.native_cell import NativeCell, PackedWeights, readers
from hwnas.supernet.preprocess import Preprocess, Weight, find_preprocess


@dataclass(frozen=True)
class MixedCell(NativeCell):
    """A cell whose nodes each sum an edge from every earlier state, and whose output concatenates them."""

    channels: int
    nodes: int
    reduction: bool
    preprocess: Preprocess | None = None  # of the states, if nobody else reads them

    def packed(self) -> MixedWeights:
        return MixedWeights(self)

    def enter(self, values: Mapping[str, Tensor], weight: Weight) -> tuple[Tensor, ...]:
        return self.preprocess.states(values, weight) if self.preprocess else super().enter(values, weight)


def find_mixed_cells(space: Space) -> dict[str, MixedCell]:
    """The cells of a space that the kernel covers, by the node that gives their output."""
    by_name = {n.name: n for n in space.nodes}
    read = readers(space.nodes)
    found = {}
    for node in space.nodes:
        cell = _match(node, by_name) if isinstance(node, Node) and isinstance(node.op, Concat) else None
        if cell and all(read[name] <= cell.inside | {node.name} for name in cell.inside):
            blocks = find_preprocess(*(by_name.get(name) for name in cell.states))
            if blocks and all(read[name] <= cell.inside for name in cell.states):
                cell = replace(cell, preprocess=blocks, inside=cell.inside | set(cell.states))
            found[node.name] = cell
    return found


def _match(output: Node, by_name: dict[str, Node | Slot]) -> MixedCell | None:
    """The cell whose nodes `output` concatenates, if each of them sums an edge from every earlier state."""
    sums = [by_name.get(name) for name in output.inputs]
    slots: list[Slot] = []
    states: list[str] = []
    for i, node in enumerate(sums):
        if not isinstance(node, Node) or not isinstance(node.op, Sum) or len(node.inputs) != 2 + i:
            return None
        incoming = [by_name.get(name) for name in node.inputs]
        edge_slots = [s for s in incoming if isinstance(s, Slot) and len(s.choices) == len(s.inputs) == 1]
        if len(edge_slots) != len(incoming):
            return None
        if i == 0:
            states = [s.inputs[0] for s in edge_slots]
        if [s.inputs for s in edge_slots] != [(state,) for state in states]:
            return None
        slots += edge_slots
        states.append(node.name)
    sep = next((op for slot in slots[:1] for op in slot.options if isinstance(op, SepConv)), None)
    if sep is None:
        return None
    reduction = sep.stride == 2
    for slot in slots:
        stride = 2 if reduction and slot.inputs[0] in states[:2] else 1
        if slot.options != edge_ops(sep.out, stride, affine=False):
            return None
    inside = frozenset([*(s.name for s in slots), *output.inputs])
    return MixedCell((states[0], states[1]), tuple(slots), inside, sep.out, len(sums), reduction)


class MixedWeights(PackedWeights):
    """Runs with the two states [n, c, h, w] that enter."""

    def __init__(self, cell: MixedCell) -> None:
        super().__init__()
        c, count = cell.channels, edges(cell.nodes)
        self.cell = cell
        self.dw = nn.Parameter(torch.zeros(count, DW_PER_CHANNEL * c))
        self.pw = nn.Parameter(torch.zeros(count, len(CONVS), c, c))
        self.fr = nn.Parameter(torch.zeros(reduced_edges(cell.nodes, cell.reduction), c, c))
        reduced = [e for e, slot in enumerate(cell.slots) if cell.reduction and slot.inputs[0] in cell.states]
        self._reduced = {edge: row for row, edge in enumerate(reduced)}
        self._depthwise, self._pointwise, self._halves = _positions(cell)

    def forward(self, s0: Tensor, s1: Tensor, gates: Tensor) -> Tensor:
        return mixed_cell(s0, s1, gates, self.dw, self.pw, self.fr, self.cell.nodes, self.cell.reduction)

    def view(self, edge: int, name: str) -> Tensor:
        c = self.cell.channels
        if name in self._depthwise:
            conv = self._depthwise[name]
            kernel = CONVS[conv][0]
            start = c * sum(k * k for k, _ in CONVS[:conv])
            return self.dw[edge, start : start + c * kernel**2].view(c, 1, kernel, kernel)
        if name in self._pointwise:
            return self.pw[edge, self._pointwise[name], :, :, None, None]
        start, end = self._halves[name]
        return self.fr[self._reduced[edge], start:end, :, None, None]


def _positions(cell: MixedCell) -> tuple[dict[str, int], dict[str, int], dict[str, tuple[int, int]]]:
    """Which convolution of the kernel each weight is: depthwise, pointwise, and rows of the factorized reduction."""
    depthwise: dict[str, int] = {}
    pointwise: dict[str, int] = {}
    halves: dict[str, tuple[int, int]] = {}
    for op in {op for slot in cell.slots for op in slot.options}:
        if isinstance(op, SepConv):
            first = 0 if op.kernel == 3 else 2
            depthwise |= {f"{op}.dw1.weight": first, f"{op}.dw2.weight": first + 1}
            pointwise |= {f"{op}.pw1.weight": first, f"{op}.pw2.weight": first + 1}
        elif isinstance(op, DilConv):
            depthwise[f"{op}.dw.weight"] = pointwise[f"{op}.pw.weight"] = 4 if op.kernel == 3 else 5
        elif isinstance(op, FactorizedReduce):
            half = op.out // 2
            halves |= {f"{op}.even.weight": (0, half), f"{op}.odd.weight": (half, op.out)}
    return depthwise, pointwise, halves
