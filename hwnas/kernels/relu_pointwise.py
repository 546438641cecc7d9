"""ReLU and a 1 x 1 convolution without bias: what brings the inputs of a DARTS cell to its width, before their batch norm.

Shapes: `x` is [N, C, H, W] in float32 or bfloat16 for the CUDA kernel, `weight` [C', C] in float32; the result is
[N, C', H, W] in x's type, contiguous. The kernel covers C in whole 16s up to 256, C' of 16, 32 or 64, and pixels in whole 64s
(128s up to C' of 32); everything else takes the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native
from hwnas.kernels.constant import constant
from hwnas.kernels.memory import aligned

TYPES = {torch.float32: 0, torch.bfloat16: 2}
Sizes = tuple[int, int, int, int, int]


def relu_pointwise_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The definition, in plain PyTorch, with the same signature."""
    return F.conv2d(F.relu(x), weight.to(x.dtype)[:, :, None, None])


def relu_pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """The native kernel where it covers the input's device, dtype and shape, else the reference."""
    if _covers(x, weight):
        z: Tensor = _forward_op(x, weight)
        return z
    return relu_pointwise_reference(x, weight)


def _covers(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cuda" or not _native.with_cuda or x.dtype not in TYPES or x.dim() != 4 or weight.dim() != 2:
        return False
    if weight.dtype != torch.float32 or weight.device != x.device or weight.shape[1] != x.shape[1]:
        return False
    return covers_sizes(operand_sizes(x, weight), x.device)


def covers_sizes(sizes: Sizes, device: torch.device) -> bool:
    """Whether the native kernels take such operands on that device."""
    n, channels, out, pixels, dtype = sizes
    whole = n > 0 and pixels > 0 and pixels % (64 if out > 32 else 128) == 0 and n * pixels < 1 << 31
    return whole and _fits(channels, out, dtype, device.index or 0)


@constant
def _fits(channels: int, out: int, dtype: int, device: int) -> bool:
    """Of any whole number of tiles."""
    with torch.cuda.device(device):
        fits: bool = _native.relu_pointwise.covers((1, channels, out, 128, dtype))
    return fits


def operand_sizes(x: Tensor, weight: Tensor) -> Sizes:
    """N, C, C', pixels and type, as the native kernels want them."""
    return x.shape[0], x.shape[1], weight.shape[0], x.shape[2] * x.shape[3], TYPES[x.dtype]


@torch.library.custom_op("hwnas::relu_pointwise", mutates_args=(), device_types="cuda")
def _forward_op(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = aligned(x), aligned(weight)
    z = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.relu_pointwise.forward_cuda(operand_sizes(x, weight), x.data_ptr(), weight.data_ptr(), z.data_ptr(), stream)
    return z


@_forward_op.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


@torch.library.custom_op("hwnas::relu_pointwise_backward", mutates_args=(), device_types="cuda")
def _backward_op(dz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    dz, x, weight = aligned(dz), aligned(x), aligned(weight)
    sizes = operand_sizes(x, weight)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    scratch = torch.empty(_native.relu_pointwise.scratch_bytes(sizes), dtype=torch.uint8, device=x.device)
    with torch.cuda.device(x.device):
        addresses = [t.data_ptr() for t in (dz, x, weight, dx, dw, scratch)]
        _native.relu_pointwise.backward_cuda(sizes, *addresses, torch.cuda.current_stream().cuda_stream)
    return dx, dw


@_backward_op.register_fake
def _(dz: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dx, dw = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight))
    return dx, dw


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dz: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if dz is None else _backward_op(dz, *ctx.saved_tensors)


_forward_op.register_autograd(_differentiate, setup_context=_save)
