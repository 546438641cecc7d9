"""Gates: how a supernet is run. One entry per choice: the number of an option, or a vector of weights over all options.

All numbers is a single path; a vector makes its choice a mixed op. A choice that decides shapes (the width of a stage) takes
a number: there is no sum of tensors of different shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir.op import Op
from hwnas.space import Slot, Space

Gates = Sequence[int | Tensor]


def check_gates(space: Space, gates: Gates) -> None:
    """UserError unless there is one fitting gate for each choice."""
    if len(gates) != len(space.choices):
        raise UserError(f"{space.name} needs a gate for each of {len(space.choices)} choices", got=len(gates))
    for gate, choice in zip(gates, space.choices, strict=True):
        options = len(choice.options)
        fits = gate.shape == (options,) if isinstance(gate, Tensor) else 0 <= gate < options
        if not fits:
            got = tuple(gate.shape) if isinstance(gate, Tensor) else gate
            raise UserError(f"the gate of {choice.name} is a number below {options} or a vector of {options}", got=got)


def slot_options(space: Space, slot: Slot, gates: Gates) -> list[tuple[Op, Tensor | None]]:
    """The distinct ops that the gates leave open in a slot, each with its weight: a product over the slot's choices.

    A single op has weight None if no vector had a say in it.
    """
    own = [gates[i] for i in space.choice_indices(slot)]
    ranges = [range(len(g)) if isinstance(g, Tensor) else (g,) for g in own]
    found: dict[Op, Tensor | None] = {}
    for values in product(*ranges):
        genotype = list(gates)
        for index, value in zip(space.choice_indices(slot), values, strict=True):
            genotype[index] = value
        op = slot.options[space.option(slot, tuple(genotype))]  # type: ignore[arg-type]
        factors = [g[v] for g, v in zip(own, values, strict=True) if isinstance(g, Tensor)]
        weight = torch.stack(factors).prod() if factors else None
        before = found.get(op)
        found[op] = weight if before is None or weight is None else before + weight
    return list(found.items())
