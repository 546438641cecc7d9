"""The DARTS search network for CIFAR-10 (Liu et al. 2019) as public codes write it: `sum(w * op(x))` over modules.

The baseline of `supernet_step` and the oracle of the mixed cell's tests. `pack` gathers a stock cell's weights (or
their gradients) in the form that `hwnas.kernels.mixed_cell` takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def batch_norm(c: int) -> nn.Module:
    return nn.BatchNorm2d(c, affine=False)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.norm = batch_norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if x.shape[2] % 2 or x.shape[3] % 2 else x
        y: Tensor = self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))
        return y


def relu_conv_bn(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), batch_norm(c_out))


def depthwise_pointwise(c: int, k: int, stride: int, dilation: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(c, c, k, stride, k // 2 * dilation, dilation, groups=c, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(c, c, 1, bias=False), batch_norm(c)]


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


class MixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        sep = [nn.Sequential(*depthwise_pointwise(c, k, stride, 1), *depthwise_pointwise(c, k, 1, 1)) for k in (3, 5)]
        dil = [nn.Sequential(*depthwise_pointwise(c, k, stride, 2)) for k in (3, 5)]
        self.ops = nn.ModuleList([
            Zero(stride),
            nn.Sequential(nn.MaxPool2d(3, stride, 1), batch_norm(c)),
            nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), batch_norm(c)),
            nn.Identity() if stride == 1 else FactorizedReduce(c, c),
            *sep, *dil,
        ])  # fmt: skip

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y: Tensor = sum(w[i] * op(x) for i, op in enumerate(self.ops))
        return y


class MixedCell(nn.Module):
    """States s0, s1 -> nodes -> concat: the boundary of the native kernel."""

    def __init__(self, c: int, nodes: int, reduction: bool) -> None:
        super().__init__()
        self.c, self.nodes, self.reduction = c, nodes, reduction
        self.edges = nn.ModuleList(
            MixedOp(c, 2 if reduction and source < 2 else 1) for node in range(nodes) for source in range(2 + node)
        )

    def forward(self, s0: Tensor, s1: Tensor, w: Tensor) -> Tensor:
        states, edge = [s0, s1], 0
        for _ in range(self.nodes):
            states.append(sum(self.edges[edge + j](x, w[edge + j]) for j, x in enumerate(states)))
            edge += len(states) - 1
        return torch.cat(states[2:], 1)


class Preprocess(nn.Module):
    """The outputs of the two cells before, brought to this cell's width and size."""

    def __init__(self, c_before: int, c_last: int, c: int, after_reduction: bool) -> None:
        super().__init__()
        self.before = FactorizedReduce(c_before, c) if after_reduction else relu_conv_bn(c_before, c)
        self.last = relu_conv_bn(c_last, c)

    def forward(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor]:
        return self.before(s0), self.last(s1)


class Network(nn.Module):
    """`cell` makes the mixed part of a cell from (c, nodes, reduction): `MixedCell`, or a native one."""

    def __init__(
        self, cell: Callable[[int, int, bool], nn.Module] = MixedCell, c: int = 16, layers: int = 8,
        nodes: int = 4, classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        edges = nodes * (nodes + 3) // 2
        self.alpha_normal = nn.Parameter(1e-3 * torch.randn(edges, 8))
        self.alpha_reduce = nn.Parameter(1e-3 * torch.randn(edges, 8))
        c_stem = 3 * c
        self.stem = nn.Sequential(nn.Conv2d(3, c_stem, 3, padding=1, bias=False), nn.BatchNorm2d(c_stem))
        self.preprocess = nn.ModuleList()
        self.cells = nn.ModuleList()
        self.reductions = [i in (layers // 3, 2 * layers // 3) for i in range(layers)]
        c_before, c_last = c_stem, c_stem
        for i, reduction in enumerate(self.reductions):
            c = 2 * c if reduction else c
            after_reduction = i > 0 and self.reductions[i - 1]
            self.preprocess.append(Preprocess(c_before, c_last, c, after_reduction))
            self.cells.append(cell(c, nodes, reduction))
            c_before, c_last = c_last, nodes * c
        self.classifier = nn.Linear(c_last, classes)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        normal, reduce = self.alpha_normal.softmax(-1), self.alpha_reduce.softmax(-1)
        for preprocess, cell, reduction in zip(self.preprocess, self.cells, self.reductions, strict=True):
            s0, s1 = s1, cell(*preprocess(s0, s1), reduce if reduction else normal)
        logits: Tensor = self.classifier(s1.mean((2, 3)))
        return logits


def pack(cell: MixedCell, leaf: Callable[[Tensor], Tensor] = lambda weight: weight) -> dict[str, Tensor]:
    """`dw`, `pw` and `fr` of `hwnas.kernels.mixed_cell`; `leaf` says what of each weight: itself, or its gradient."""
    dw, pw, fr = [], [], []
    for edge in cell.edges:
        assert isinstance(edge, MixedOp)
        convs = [m for op in edge.ops[4:] for m in op.modules() if isinstance(m, nn.Conv2d)]
        dw.append(torch.cat([leaf(conv.weight).flatten() for conv in convs[::2]]))
        pw.append(torch.stack([leaf(conv.weight)[:, :, 0, 0] for conv in convs[1::2]]))
        skip = edge.ops[3]
        if isinstance(skip, FactorizedReduce):
            fr.append(torch.cat([leaf(skip.even.weight), leaf(skip.odd.weight)])[:, :, 0, 0])
    empty = dw[0].new_empty(0, cell.c, cell.c)
    return {"dw": torch.stack(dw), "pw": torch.stack(pw), "fr": torch.stack(fr) if fr else empty}
