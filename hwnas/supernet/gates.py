"""Gates: how a supernet is run. One entry per choice: the number of an option, a vector of weights over all options, or a
mapping from some options to their weights, so that only those are computed.

All numbers is a single path; a vector or mapping makes its choice a mixed op. A choice that decides shapes (the width of a
stage) takes one option: there is no sum of tensors of different shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir.op import Op
from hwnas.space import Slot, Space

Gate = int | Tensor | Mapping[int, Tensor]
Gates = Sequence[Gate]


def check_gates(space: Space, gates: Gates) -> None:
    """UserError unless there is one fitting gate for each choice."""
    if len(gates) != len(space.choices):
        raise UserError(f"{space.name} needs a gate for each of {len(space.choices)} choices", got=len(gates))
    for gate, choice in zip(gates, space.choices, strict=True):
        options = len(choice.options)
        if isinstance(gate, Tensor):
            fits, got = gate.shape == (options,), str(tuple(gate.shape))
        elif isinstance(gate, Mapping):
            fits, got = bool(gate) and all(0 <= o < options and w.dim() == 0 for o, w in gate.items()), str(list(gate))
        else:
            fits, got = 0 <= gate < options, str(gate)
        if not fits:
            raise UserError(
                f"the gate of {choice.name} is a number below {options}, a vector of {options}, or weights of some numbers",
                got=got,
            )


def slot_options(space: Space, slot: Slot, gates: Gates) -> list[tuple[Op, Tensor | None]]:
    """The distinct ops that the gates leave open in a slot, each with its weight: a product over the slot's choices.

    A single op has weight None if nothing but numbers had a say in it.
    """
    own = [gates[i] for i in space.choice_indices(slot)]
    ranges = [(g,) if isinstance(g, int) else range(len(g)) if isinstance(g, Tensor) else tuple(g) for g in own]
    found: dict[Op, Tensor | None] = {}
    for values in product(*ranges):
        genotype = [0] * len(space.choices)
        for index, value in zip(space.choice_indices(slot), values, strict=True):
            genotype[index] = value
        op = slot.options[space.option(slot, tuple(genotype))]
        factors = [g[v] for g, v in zip(own, values, strict=True) if not isinstance(g, int)]
        weight = torch.stack(factors).prod() if factors else None
        before = found.get(op)
        found[op] = weight if before is None or weight is None else before + weight
    return list(found.items())
