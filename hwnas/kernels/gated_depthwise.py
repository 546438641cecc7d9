"""Depthwise convolutions of several kernel sizes, gated and summed: the mixed op of mobile kernels 3, 5 and 7.

A convolution is linear in its weights, so `sum_o gates[o] * conv(x, w_o)` is one convolution with the gated sum of the
weights, each centred in the largest kernel: one pass over x instead of one an option, forward and backward, and nothing
but x and the weights to keep. Gradients are those of the blend: autograd sees two linear steps.

Shapes: x [N, C, H, W] of any layout; weights[o] [C, 1, k, k] with odd k; gates [O], one for each; result [N, C, H', W']
with H' = ceil(H / stride): each option is padded by k // 2, so that the kernels' centres meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gated_depthwise_reference(x: Tensor, weights: Sequence[Tensor], gates: Tensor, stride: int = 1) -> Tensor:
    """The definition: every option on its own, then the blend."""
    _check(x, weights, gates, stride)
    outputs = [F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=x.shape[1]) for w in weights]
    return torch.stack([gate * y for gate, y in zip(gates, outputs, strict=True)]).sum(0)


def gated_depthwise(x: Tensor, weights: Sequence[Tensor], gates: Tensor, stride: int = 1) -> Tensor:
    """One convolution with the blended kernel."""
    _check(x, weights, gates, stride)
    weight = blended_kernel(weights, gates)
    return F.conv2d(x, weight.to(x.dtype), None, stride, weight.shape[-1] // 2, groups=x.shape[1])


def blended_kernel(weights: Sequence[Tensor], gates: Tensor) -> Tensor:
    """`sum_o gates[o] * weights[o]`, [C, 1, K, K], K the largest of the kernels."""
    size = max(w.shape[-1] for w in weights)
    centred = [F.pad(w, [(size - w.shape[-1]) // 2] * 4) for w in weights]
    return torch.einsum("o,ocikl->cikl", gates, torch.stack(centred))


def _check(x: Tensor, weights: Sequence[Tensor], gates: Tensor, stride: int) -> None:
    if not weights:
        raise ValueError("gated_depthwise needs at least one kernel, got none")
    if x.dim() != 4:
        raise ValueError(f"gated_depthwise needs x[N, C, H, W], got {list(x.shape)}; add the missing dimensions")
    for w in weights:
        if w.dim() != 4 or w.shape[:2] != (x.shape[1], 1) or w.shape[2] != w.shape[3] or w.shape[2] % 2 == 0:
            raise ValueError(
                f"gated_depthwise needs kernels [{x.shape[1]}, 1, k, k] with odd k, got {list(w.shape)};"
                " kernels of even size have no centre to meet at"
            )
    if gates.shape != (len(weights),):
        raise ValueError(f"gated_depthwise needs gates[{len(weights)}], one a kernel, got {list(gates.shape)}")
    if stride < 1:
        raise ValueError(f"gated_depthwise needs a stride of at least 1, got {stride}")
