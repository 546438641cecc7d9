"""A chain of layers, dense or convolutional: the space of the classic articles (Zoph and Le 2017; Baker et al. 2017).

Each layer chooses its type (with `skip` for no layer, so the depth is searched too), its width (filters or units) and its
activation. A convolutional chain halves the resolution at fixed places, by a maximum pool, so that every genotype fits.
"""

from __future__ import annotations

from itertools import product

from hwnas.errors import UserError
from hwnas.ir.arch import Node
from hwnas.ir.op import Op
from hwnas.ir.prims import ActivationKind
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.classifier import Classifier
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.dense import Dense
from hwnas.ops.identity import Identity
from hwnas.ops.pool import Pool
from hwnas.ops.sep_conv_bn import SepConvBn
from hwnas.space import Choice, Slot, Space

CONV_TYPES = ("conv3", "conv5", "sep3", "sep5")


def space(
    input: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    kind: str = "conv",
    layers: int = 4,
    widths: tuple[int, ...] = (8, 16, 32),
    activations: tuple[ActivationKind, ...] = ("relu", "tanh", "elu"),
) -> Space:
    """`kind` is `conv` or `dense`; `widths` are filters or units. The first layer is never skipped.

    A pool follows every second convolutional layer while both sides are at least 8.
    """
    if kind not in ("conv", "dense") or layers < 1 or not widths or not activations:
        raise UserError("a chain has kind conv or dense, at least one layer, width and activation", got=(kind, layers))
    types = CONV_TYPES if kind == "conv" else ("dense",)

    def op(type_: str, width: int, act: ActivationKind) -> Op:
        if type_ == "skip":
            return Identity()
        if type_ == "dense":
            return Dense(width, act)
        return (ConvBn if type_.startswith("conv") else SepConvBn)(width, int(type_[-1]), 1, act)

    choices: list[Choice] = []
    nodes: list[Node | Slot] = []
    last, side = "x", min(input[1:], default=1)
    for layer in range(layers):
        name = f"layer{layer}"
        options = types if layer == 0 else ("skip", *types)
        parts = [
            Choice(f"{name}.type", options),
            Choice(f"{name}.width", tuple(map(str, widths))),
            Choice(f"{name}.act", activations),
        ]
        choices += parts
        ops = tuple(op(t, w, a) for t, w, a in product(options, widths, activations))
        nodes.append(Slot(name, tuple(c.name for c in parts), ops, (last,)))
        last = name
        if kind == "conv" and layer % 2 == 1 and side >= 8:
            last, side = f"pool{layer}", side // 2
            nodes.append(Node(last, Pool("max", 2, 2), (name,)))
    nodes.append(Node("head", Classifier(classes), (last,)))
    return Space("chain", TensorSpec(tuple(input)), tuple(choices), tuple(nodes), "head")
