"""to_torch: an arch as a torch module whose state dict carries the IR's weight names. `run_graph` also serves the supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.ir import prims
from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.graph import Graph
from hwnas.lower.weights import check_weights, init_weights

BN_MOMENTUM = 0.1  # of the running statistics, as in torch

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "elu": F.elu, "leaky_relu": F.leaky_relu,
}  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """`training`: batch norm uses the batch's statistics, and moves the running ones towards them by `momentum`."""

    training: bool
    momentum: float = BN_MOMENTUM


Weights = Callable[[str], Tensor]
Lowering = Callable[[Any, Sequence[Tensor], Weights, Mode], Tensor]
# A table rather than functools.singledispatch, which torch.compile cannot trace.
_LOWERINGS: dict[type[prims.Prim], Lowering] = {}


def apply_prim(prim: prims.Prim, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    """A prim over batches of its inputs; `weights` finds its weights by their names in the prim."""
    if type(prim) not in _LOWERINGS:
        raise NotImplementedError(f"{type(prim).__name__} has no torch lowering")
    return _LOWERINGS[type(prim)](prim, xs, weights, mode)


def _lowers(prim: type[prims.Prim]) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        _LOWERINGS[prim] = lowering
        return lowering

    return register


@_lowers(prims.Conv)
def _(prim: prims.Conv, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    bias = weights("bias") if prim.bias else None
    return F.conv2d(xs[0], weights("weight"), bias, prim.stride, prim.padding, prim.dilation, prim.groups)


@_lowers(prims.BatchNorm)
def _(prim: prims.BatchNorm, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    scale, shift = (weights("weight"), weights("bias")) if prim.affine else (None, None)
    # In training the running statistics are updated in place: where they are views, so is what they view.
    statistics = weights("running_mean"), weights("running_var")
    return F.batch_norm(xs[0], *statistics, scale, shift, mode.training, mode.momentum, prim.eps)


@_lowers(prims.Activation)
def _(prim: prims.Activation, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return ACTIVATIONS[prim.kind](xs[0])


@_lowers(prims.Pool)
def _(prim: prims.Pool, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    if prim.kind == "max":
        return F.max_pool2d(xs[0], prim.kernel, prim.stride, prim.padding)
    return F.avg_pool2d(xs[0], prim.kernel, prim.stride, prim.padding, count_include_pad=False)


@_lowers(prims.GlobalPool)
def _(prim: prims.GlobalPool, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return xs[0].mean((2, 3), keepdim=True)


@_lowers(prims.Flatten)
def _(prim: prims.Flatten, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return xs[0].flatten(1)


@_lowers(prims.Linear)
def _(prim: prims.Linear, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return F.linear(xs[0], weights("weight"), weights("bias") if prim.bias else None)


@_lowers(prims.Add)
def _(prim: prims.Add, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    total = xs[0]
    for x in xs[1:]:
        total = total + x
    return total


@_lowers(prims.Scale)
def _(prim: prims.Scale, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return xs[0] * xs[1]


@_lowers(prims.Concat)
def _(prim: prims.Concat, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return torch.cat(list(xs), 1)


@_lowers(prims.Shift)
def _(prim: prims.Shift, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return F.pad(xs[0], (-1, 1, -1, 1))


@_lowers(prims.Zero)
def _(prim: prims.Zero, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    return torch.zeros_like(xs[0][:, :, :: prim.stride, :: prim.stride])


def run_graph(graph: Graph, xs: Sequence[Tensor], weights: Weights, mode: Mode) -> Tensor:
    """The output of an op's graph for batches `xs` of its inputs. `weights` finds a weight by its name in the op."""
    values = list(xs)
    for step in graph.steps:
        name = step.name

        def find(weight: str, name: str = name) -> Tensor:
            return weights(f"{name}.{weight}")

        values.append(apply_prim(step.prim, [values[i] for i in step.inputs], find, mode))
    return values[graph.output]


class ArchModule(nn.Module):
    """An arch with weights of its own. Input [n, *dims] -> output [n, *dims]; `state_dict` has the IR's names.

    `torch.compile` traces it as one graph.
    """

    def __init__(self, arch: Arch, weights: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.arch = arch
        self.bn_momentum = BN_MOMENTUM
        check_weights(arch, weights)
        self._nodes = [(node.name, node.inputs, arch.placed(node).graph) for node in arch.nodes]
        self._tensors: dict[str, tuple[nn.Module, str]] = {}
        for name, spec in arch.weights():
            value = torch.from_numpy(np.array(weights[name], np.float32))
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if spec.buffer:
                owner.register_buffer(leaf, value)
            else:
                owner.register_parameter(leaf, nn.Parameter(value))
            self._tensors[name] = (owner, leaf)

    def forward(self, x: Tensor) -> Tensor:
        values = {INPUT: x}
        mode = Mode(self.training, self.bn_momentum)
        for name, inputs, graph in self._nodes:

            def find(weight: str, prefix: str = name) -> Tensor:
                owner, leaf = self._tensors[f"{prefix}.{weight}"]
                tensor: Tensor = getattr(owner, leaf)
                return tensor

            values[name] = run_graph(graph, [values[i] for i in inputs], find, mode)
        return values[self.arch.output]

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all weights and statistics, by IR name."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}


def to_torch(arch: Arch, weights: Mapping[str, NDArray[np.float32]] | None = None, seed: int = 0) -> ArchModule:
    """The arch as a module, with the given weights or fresh ones of this seed."""
    return ArchModule(arch, init_weights(arch, seed) if weights is None else weights)
