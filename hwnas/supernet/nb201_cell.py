"""Cells of NAS-Bench-201 without affine batch norms, which `nb201_cell` runs: natively on processors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.ir.arch import Node
from hwnas.kernels.nb201_cell import edges, nb201_cell
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sum import Sum
from hwnas.space import Slot, Space
from hwnas.spaces.nasbench201 import edge_ops
from hwnas.supernet.native_cell import NativeCell, PackedWeights, readers


@dataclass(frozen=True)
class Nb201Cell(NativeCell):
    """A cell whose state j sums an edge from every earlier state; the last state is its output."""

    channels: int
    count: int  # of states

    def packed(self) -> Nb201Weights:
        return Nb201Weights(self)


def find_nb201_cells(space: Space) -> dict[str, Nb201Cell]:
    """The cells of a space that the kernel covers, by the node that gives their output; of nested ones the largest."""
    by_name = {n.name: n for n in space.nodes}
    read = readers(space.nodes)
    found: dict[str, Nb201Cell] = {}
    taken: set[str] = set()
    for node in reversed(space.nodes):
        cell = None if node.name in taken else _match(node, by_name)
        if cell and all(read[name] <= cell.inside | {node.name} for name in cell.inside):
            found[node.name] = cell
            taken |= cell.inside
    return dict(reversed(found.items()))


def _match(output: Node | Slot, by_name: dict[str, Node | Slot]) -> Nb201Cell | None:
    last = _edges(output, by_name)
    states = [slot.inputs[0] for slot in last]  # that the output sums, from the cell's input on
    slots: list[Slot] = []
    for j, state in enumerate([*states[1:], output.name], start=1):
        incoming = _edges(by_name.get(state), by_name)
        if [slot.inputs for slot in incoming] != [(s,) for s in states[:j]]:
            return None
        slots += incoming
    conv = next((op for slot in slots for op in slot.options if isinstance(op, ReluConvBn)), None)
    if conv is None or any(slot.options != edge_ops(conv.out, affine=False) for slot in slots):
        return None
    inside = frozenset([*(slot.name for slot in slots), *states[1:]])
    return Nb201Cell((states[0],), tuple(slots), inside, conv.out, len(states) + 1)


def _edges(node: Node | Slot | None, by_name: dict[str, Node | Slot]) -> list[Slot]:
    """The slots that a sum adds up; none if it is not a sum of slots with a choice each."""
    if not isinstance(node, Node) or not isinstance(node.op, Sum):
        return []
    incoming = [by_name.get(name) for name in node.inputs]
    found = [s for s in incoming if isinstance(s, Slot) and len(s.choices) == 1 and len(s.inputs) == 1]
    return found if len(found) == len(incoming) else []


class Nb201Weights(PackedWeights):
    """Runs with the state [n, c, h, w] that enters."""

    def __init__(self, cell: Nb201Cell) -> None:
        super().__init__()
        c, count = cell.channels, edges(cell.count)
        self.count = cell.count
        self.w1 = nn.Parameter(torch.zeros(count, c, c))
        self.w3 = nn.Parameter(torch.zeros(count, c, c, 3, 3))
        self._one = f"{ReluConvBn(c, 1, affine=False)}.conv.weight"

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        return nb201_cell(x, gates, self.w1, self.w3, self.count)

    def view(self, edge: int, name: str) -> Tensor:
        return self.w1[edge, :, :, None, None] if name == self._one else self.w3[edge]
