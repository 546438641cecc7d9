"""Supernet: every option of every slot of a space, with shared weights, run under gates.

Weights live in banks, one per slot and kind of op. Ops of an entangled class share a bank as large as the largest of them and
take its leading channels and the centre of its kernels (Cai et al. 2020, Once-for-All); every other option has a bank of its
own. So a path's weights are views, and deriving a network copies them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from hwnas.errors import UserError
from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.op import Op, PlacedOp
from hwnas.ir.prims import WeightSpec
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels.mixed_cell import layout
from hwnas.lower.torch import Mode, run_graph
from hwnas.lower.weights import init_weight
from hwnas.placements import placements
from hwnas.space import Genotype, Slot, Space
from hwnas.supernet.gates import Gates, check_gates, slot_options
from hwnas.supernet.mixed_cell import find_mixed_cells
from hwnas.supernet.mixed_op import mixed_op
from hwnas.supernet.native_cell import NativeCell, PackedWeights
from hwnas.supernet.nb201_cell import find_nb201_cells


def bank_name(node: str, op: Op) -> str:
    """The bank that an op in a node or slot takes its weights from."""
    return f"{node}:{op.name() if op.entangled else op}"


def sub_weight(bank: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of that shape into a bank's weight: leading channels, centre of the kernel."""
    view = bank
    for dim, (have, want) in enumerate(zip(bank.shape, shape, strict=True)):
        if have != want:
            view = view.narrow(dim, (have - want) // 2 if dim >= 2 else 0, want)
    return view


class Supernet(nn.Module):
    """Input [n, *dims] -> logits [n, classes]."""

    def __init__(self, space: Space, seed: int = 0, native: bool = True) -> None:
        """`native`: cells that a native kernel covers run through it when they are mixed and trained; running statistics inside
        them stay as they are then, so that a path is recalibrated before it is scored."""
        super().__init__()
        self.space = space
        self._names: dict[str, str] = {}  # bank weight -> attribute; modules allow no dots in names
        self._cells: dict[str, NativeCell] = {**find_mixed_cells(space), **find_nb201_cells(space)} if native else {}
        self._packed: dict[str, tuple[PackedWeights, int]] = {}  # slot -> where its weights are, and as which edge
        specs: dict[str, WeightSpec] = {}
        for node, ops in placements(space).items():
            for placed in ops:
                for name, spec in placed.graph.weights():
                    full = f"{bank_name(node, placed.op)}.{name}"
                    specs[full] = _larger(specs[full], spec) if full in specs else spec
        for output, cell in self._cells.items():
            packed = cell.packed()
            self.add_module(output.replace(".", "/"), packed)
            self._packed |= {slot.name: (packed, edge) for edge, slot in enumerate(cell.slots)}
        for full, spec in specs.items():
            slot, op = full.split(":", 1)
            if slot in self._packed and not spec.buffer:
                packed, edge = self._packed[slot]
                with torch.no_grad():
                    packed.view(edge, op).copy_(torch.from_numpy(init_weight(full, spec, seed)))
                continue
            attribute = self._names[full] = full.replace(".", "/")
            value = torch.from_numpy(init_weight(full, spec, seed))
            if spec.buffer:
                self.register_buffer(attribute, value)
            else:
                self.register_parameter(attribute, nn.Parameter(value))
        self._simple = lru_cache(maxsize=4096)(self._simplified)

    def weight(self, node: str, op: Op, name: str, shape: tuple[int, ...]) -> Tensor:
        """The view that an op of this node uses as its weight `name` (local to the op)."""
        return self.view(f"{bank_name(node, op)}.{name}", shape)

    def view(self, bank: str, shape: tuple[int, ...]) -> Tensor:
        """A view of that shape into the weight `bank`, which `bank_name` and a weight's name make up."""
        if bank not in self._names:
            node, weight = bank.split(":", 1)
            packed, edge = self._packed[node]
            return packed.view(edge, weight)
        return sub_weight(getattr(self, self._names[bank]), shape)

    def forward(self, x: Tensor, gates: Gates) -> Tensor:
        check_gates(self.space, gates)
        if all(isinstance(g, int) for g in gates):
            return self._single_path(x, tuple(gates))  # type: ignore[arg-type]
        cells = {o: c for o, c in self._cells.items() if self.training and c.is_mixed(self.space, gates)}
        inside = {name for cell in cells.values() for name in cell.inside}
        if cells:
            x = x.contiguous(memory_format=layout(x.device.type))
        values = {INPUT: x}
        for node in self.space.nodes:
            if node.name in inside:
                continue
            if node.name in cells:
                cell = cells[node.name]
                packed, _ = self._packed[cell.slots[0].name]
                values[node.name] = packed(*cell.enter(values, self.weight), cell.gates(self.space, gates))
                continue
            xs = [values[i] for i in node.inputs]
            if isinstance(node, Slot):
                options = slot_options(self.space, node, gates)
                values[node.name] = mixed_op(options, lambda op, n=node.name, xs=xs: self._run(n, op, xs))  # type: ignore[misc]
            else:
                values[node.name] = self._run(node.name, node.op, xs)
        return values[self.space.output]

    def _single_path(self, x: Tensor, genotype: Genotype) -> Tensor:
        arch = self._simple(genotype)
        values = {INPUT: x}
        for node in arch.nodes:
            values[node.name] = self._run(node.name, node.op, [values[i] for i in node.inputs])
        return values[arch.output]

    def _simplified(self, genotype: Genotype) -> Arch:
        return simplify(self.space.decode(genotype))

    def _run(self, node: str, op: Op, xs: list[Tensor]) -> Tensor:
        graph = PlacedOp(op, tuple(TensorSpec(tuple(x.shape[1:])) for x in xs)).graph
        shapes = {name: spec.shape for name, spec in graph.weights()}
        return run_graph(graph, xs, lambda name: self.weight(node, op, name, shapes[name]), Mode(self.training))


def _larger(a: WeightSpec, b: WeightSpec) -> WeightSpec:
    """The weight that holds both."""
    if len(a.shape) != len(b.shape) or (a.init, a.buffer) != (b.init, b.buffer):
        raise UserError("ops of one entangled class need weights of one kind under one name", got=f"{a} and {b}")
    shape = tuple(max(pair) for pair in zip(a.shape, b.shape, strict=True))
    return WeightSpec(a.name, shape, a.init, max(a.fan_in, b.fan_in), a.buffer)
