"""The expected latency of a supernet under gates: a sum over slots of probability times latency, differentiable.

E[latency] = constant + sum_slots sum_o p_o * latency(op_o), the product of its choices' probabilities being p_o (Cai et al.
2019, ProxylessNAS, equation 2; Wu et al. 2019, FBNet, equation 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Add
from hwnas.placements import placements
from hwnas.space import Slot, Space

Probabilities = Sequence[Tensor]  # per choice, over its options


@dataclass(frozen=True, eq=False)
class ExpectedLatency:
    """`terms`: for some choices (their places in a genotype) the milliseconds of each combination of their options."""

    terms: tuple[tuple[tuple[int, ...], Tensor], ...]
    constant_ms: float = 0.0

    @classmethod
    def of_ops(cls, space: Space, table: Mapping[PlacedOp, float]) -> ExpectedLatency:
        """From the latency table of placed ops, in milliseconds. Sums, and ops that compute nothing, cost nothing.

        An op that can meet inputs of several shapes counts with the mean over them. UserError if the table lacks an op.
        """
        terms: list[tuple[tuple[int, ...], Tensor]] = []
        constant = 0.0
        found = placements(space)
        for node in space.nodes:
            if isinstance(node, Slot):
                by_op: dict[object, list[float]] = {}
                for placed in found[node.name]:
                    by_op.setdefault(placed.op, []).append(_milliseconds(placed, table))
                sizes = [len(space.choices[i].options) for i in space.choice_indices(node)]
                row = [sum(by_op[op]) / len(by_op[op]) for op in node.options]
                terms.append((space.choice_indices(node), torch.tensor(row, dtype=torch.float64).view(sizes)))
            else:
                values = [_milliseconds(placed, table) for placed in found[node.name]]
                constant += sum(values) / len(values)
        return cls(_gathered(terms), constant)

    @classmethod
    def of_choices(cls, tables: Sequence[Sequence[float]], constant_ms: float = 0.0) -> ExpectedLatency:
        """From milliseconds per option of each choice."""
        rows = [torch.tensor(list(row), dtype=torch.float64) for row in tables]
        return cls(tuple(((i,), row) for i, row in enumerate(rows)), constant_ms)

    def milliseconds(self, probabilities: Probabilities) -> Tensor:
        total = probabilities[0].new_tensor(self.constant_ms)
        for choices, table in self.terms:
            joint = table.to(total)
            for i in choices:  # the first dimension is always the next choice's
                joint = torch.tensordot(probabilities[i], joint, 1)
            total = total + joint
        return total

    def share(self, probabilities: Probabilities) -> Tensor:
        """The expectation over that of equal gates: a number without unit, near 1 at the start of a search."""
        equal = [torch.full_like(p, 1 / len(p)) for p in probabilities]
        return self.milliseconds(probabilities) / self.milliseconds(equal).detach().clamp_min(1e-30)


def _milliseconds(placed: PlacedOp, table: Mapping[PlacedOp, float]) -> float:
    if placed in table:
        return table[placed]
    if placed.graph.is_identity() or placed.graph.only is Add:
        return 0.0
    raise UserError("the latency table lacks an op of the space", got=str(placed), remedy="run hwnas profile with its space")


def _gathered(terms: Sequence[tuple[tuple[int, ...], Tensor]]) -> tuple[tuple[tuple[int, ...], Tensor], ...]:
    """One term for all slots of the same choices."""
    sums: dict[tuple[int, ...], Tensor] = {}
    for choices, table in terms:
        assert table.numel() == prod(table.shape)
        sums[choices] = sums[choices] + table if choices in sums else table
    return tuple(sums.items())
