"""The DARTS search network with the native mixed cell, and the way from a stock network's weights to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.stock_darts import FactorizedReduce, MixedCell, Network, Preprocess, pack
from hwnas.kernels.batch_norm import batch_norm
from hwnas.kernels.mixed_cell import CONVS, DW_PER_CHANNEL, edges, mixed_cell, reduced_edges
from hwnas.kernels.preprocess import preprocess


class NativeCell(nn.Module):
    def __init__(self, c: int, nodes: int, reduction: bool) -> None:
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        e, r = edges(nodes), reduced_edges(nodes, reduction)
        self.dw = nn.Parameter(torch.empty(e, DW_PER_CHANNEL * c))
        self.pw = nn.Parameter(torch.empty(e, len(CONVS), c, c))
        self.fr = nn.Parameter(torch.empty(r, c, c))

    def forward(self, s0: Tensor, s1: Tensor, gates: Tensor) -> Tensor:
        return mixed_cell(s0, s1, gates, self.dw, self.pw, self.fr, self.nodes, self.reduction)


class NativeBatchNorm(nn.Module):
    """Takes the place of a stock batch norm, under the same parameter names."""

    def __init__(self, stock: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = stock.weight, stock.bias

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.weight, self.bias)


class NativePreprocess(nn.Module):
    """Takes the place of a stock cell's preprocess blocks, under the same parameter names."""

    def __init__(self, stock: Preprocess) -> None:
        super().__init__()
        self.before, self.last = stock.before, stock.last
        self.reduced = isinstance(self.before, FactorizedReduce)

    def forward(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor]:
        convs = [m for m in self.before.modules() if isinstance(m, nn.Conv2d)]
        older = torch.cat([conv.weight.flatten(1) for conv in convs]) if self.reduced else convs[0].weight.flatten(1)
        return preprocess(s0, s1, older, self.last[1].weight.flatten(1), self.reduced)


def packed(stock: Network, leaf: Callable[[Tensor], Tensor | None] = lambda weight: weight) -> dict[str, Tensor]:
    """What `leaf` says of each of a stock network's weights, under the names of the native network."""

    def wanted(weight: Tensor) -> Tensor:
        value = leaf(weight)
        return torch.zeros_like(weight) if value is None else value

    values = {name: wanted(p) for name, p in stock.named_parameters() if not name.startswith("cells.")}
    for i, cell in enumerate(stock.cells):
        assert isinstance(cell, MixedCell)
        values |= {f"cells.{i}.{name}": value for name, value in pack(cell, wanted).items()}
    return values


def native_network(stock: Network, build: Callable[[], Network]) -> Network:
    """`build()`, a network of native cells between native preprocess blocks, with the stock network's weights."""
    native = build()
    for block in list(native.modules()):
        for name, child in block.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(block, name, NativeBatchNorm(child))
    native.preprocess = nn.ModuleList(NativePreprocess(block) for block in native.preprocess)
    values = packed(stock)
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            parameter.copy_(values[name])
    return native
