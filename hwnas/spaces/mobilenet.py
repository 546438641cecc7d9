"""Chains of inverted bottlenecks, in the style of MnasNet (Tan et al. 2019), ProxylessNAS (Cai et al. 2019) and Once-for-All.

Each layer chooses kernel and expansion (and squeeze-and-excite, if `se`), or to be skipped where its input and output agree.
Each stage chooses its depth and its width, tied over its layers.
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
from hwnas.ops.identity import Identity
from hwnas.ops.mbconv import MbConv
from hwnas.space import Choice, Slot, Space

# Channels, layers and stride of each searched stage: the macro structure of MobileNetV2 (Sandler et al. 2018, table 2).
STAGES = ((24, 4, 2), (32, 4, 2), (64, 4, 2), (96, 4, 1), (160, 4, 2), (320, 1, 1))


def channels(value: float) -> int:
    """The nearest multiple of 8 that is at least 8 and at least nine tenths of `value` (Sandler et al. 2018)."""
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * value else rounded + 8


def strides_for(side: int, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides for small images: the earliest halvings are dropped until the last feature map has 4 pixels a side."""
    result = list(strides)
    halvings = [i for i, s in enumerate(strides) if s == 2]
    spare = len(halvings) - max(0, (side // 4).bit_length() - 1)
    for i in halvings[: max(0, spare)]:
        result[i] = 1
    return tuple(result)


def space(
    input: tuple[int, int, int] = (3, 224, 224),
    classes: int = 1000,
    width: float = 1.0,
    stages: tuple[tuple[int, int, int], ...] = STAGES,
    stem: int = 32,
    first: int = 16,
    head: int = 1280,
    kernels: tuple[int, ...] = (3, 5, 7),
    expansions: tuple[int, ...] = (3, 6),
    se: bool = False,
    depths: tuple[int, ...] = (2, 3, 4),
    widths: tuple[float, ...] = (0.75, 1.0),
    act: ActivationKind = "relu",
) -> Space:
    """`stages` are (channels, layers, stride), all times `width`; `depths` and `widths` are what each stage may choose.

    A depth above the stage's number of layers is taken as that number. `first` is the width of the one fixed bottleneck.
    """
    if not stages or any(len(s) != 3 for s in stages) or not kernels or not expansions or not depths or not widths:
        raise UserError(
            "the mobilenet space needs stages of (channels, layers, stride) and at least one option a choice", got=stages
        )
    if any(k % 2 != 1 or k < 1 for k in kernels):
        raise UserError("kernels are odd and positive", got=kernels)
    if width <= 0 or min(widths) <= 0:
        raise UserError("widths are positive", got=(width, widths))
    stem_stride, *stage_strides = strides_for(min(input[1:]), (2, *(s for _, _, s in stages)))
    settings = [
        (f"k{k}e{e}" + ("se" if s else ""), k, e, s)
        for k, e, s in product(kernels, expansions, (False, True) if se else (False,))
    ]
    choices: list[Choice] = []
    nodes: list[Node | Slot] = [
        Node("stem", ConvBn(channels(stem * width), stride=stem_stride, act=act), ("x",)),
        Node("first", MbConv(channels(first * width), expand=1, act=act), ("stem",)),
    ]
    last = "first"
    for s, ((out, layers, _), stride) in enumerate(zip(stages, stage_strides, strict=True)):
        stage = f"stage{s}"
        stage_depths = tuple(sorted({min(max(d, 1), layers) for d in depths}))
        stage_widths = tuple(sorted({channels(out * width * w) for w in widths}))
        width_choice = Choice(f"{stage}.width", tuple(map(str, stage_widths)))
        depth_choice = Choice(f"{stage}.depth", tuple(map(str, stage_depths)))
        choices += [width_choice, depth_choice]
        for layer in range(max(stage_depths)):
            name = f"{stage}.layer{layer}"
            optional = layer > 0
            labels = tuple(label for label, *_ in settings) + (("skip",) if optional else ())
            layer_choice = Choice(f"{name}.op", labels)
            choices.append(layer_choice)
            options: list[Op] = []
            for out_channels, depth, label in product(stage_widths, stage_depths, labels):
                if label == "skip" or layer >= depth:
                    options.append(Identity())
                    continue
                _, kernel, expand, squeeze = next(t for t in settings if t[0] == label)
                options.append(MbConv(out_channels, kernel, expand, stride if layer == 0 else 1, squeeze, act))
            nodes.append(Slot(name, (width_choice.name, depth_choice.name, layer_choice.name), tuple(options), (last,)))
            last = name
    if head:
        nodes.append(Node("mix", ConvBn(channels(head * width), 1, act=act), (last,)))
        last = "mix"
    nodes.append(Node("head", Classifier(classes), (last,)))
    return Space("mobilenet", TensorSpec(tuple(input)), tuple(choices), tuple(nodes), "head")
