"""Cells that a native kernel runs in one call instead of one op after another, and where their weights lie.

Everything else about the weights stays as it is: each option's weights are views into the packed ones, under their IR names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.ir.arch import Node
from hwnas.space import Slot, Space
from hwnas.supernet.gates import Gates
from hwnas.supernet.preprocess import Weight


class PackedWeights(nn.Module, ABC):
    """The weights of a cell as its kernel reads them. Run with the cell's states and gates [edges, ops], it is the cell."""

    @abstractmethod
    def view(self, edge: int, name: str) -> Tensor:
        """The weight `<op>.<step>.weight` of an edge, in the shape that the op gives it."""


@dataclass(frozen=True)
class NativeCell(ABC):
    """`states` are the nodes that enter the cell, `slots` its edges in the kernel's order, `inside` what only it computes."""

    states: tuple[str, ...]
    slots: tuple[Slot, ...]
    inside: frozenset[str]

    @abstractmethod
    def packed(self) -> PackedWeights:
        """Room for the weights, zero."""

    def enter(self, values: Mapping[str, Tensor], weight: Weight) -> tuple[Tensor, ...]:
        """The states, given the values of the nodes outside. `weight` finds the weights of nodes inside that are no edges."""
        return tuple(values[name] for name in self.states)

    def is_mixed(self, space: Space, gates: Gates) -> bool:
        """Whether every edge has a vector as its gate."""
        return all(isinstance(gates[space.choice_indices(slot)[0]], Tensor) for slot in self.slots)

    def gates(self, space: Space, gates: Gates) -> Tensor:
        """[edges, ops]"""
        return torch.stack([gates[space.choice_indices(slot)[0]] for slot in self.slots])  # type: ignore[misc]


def readers(nodes: Iterable[Node | Slot]) -> Mapping[str, set[str]]:
    """Which nodes read each node."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        for name in node.inputs:
            found.setdefault(name, set()).add(node.name)
    return found
