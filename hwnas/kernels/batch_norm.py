"""Batch norm without affine, by the batch's own statistics (biased variance, eps 1e-5), as between search cells.

Shapes: `x` is [N, C, ...] in float32 or bfloat16 for the CUDA kernel; other devices and types take the reference.
Returns a contiguous tensor of x's shape and dtype. Nothing keeps running statistics: a supernet is evaluated with its
batch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native

EPS = 1e-5
_TYPES = {torch.float32: 0, torch.bfloat16: 2}


def batch_norm_reference(x: Tensor) -> Tensor:
    """The definition, in plain PyTorch, with the same signature."""
    return F.batch_norm(x, None, None, training=True, eps=EPS)


def batch_norm(x: Tensor) -> Tensor:
    """The native kernel where it covers the input's device and dtype, else the reference."""
    if x.device.type == "cuda" and _native.with_cuda and x.dtype in _TYPES and x.dim() >= 2 and x.numel() > x.shape[1]:
        y: Tensor = _forward_op(x)[0]
        return y
    return batch_norm_reference(x)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    n, c = x.shape[:2]
    return n, c, x.numel() // (n * c), _TYPES[x.dtype]


def _scratch(x: Tensor) -> Tensor:
    return torch.empty(_native.batch_norm.scratch_bytes(*x.shape[:2]), dtype=torch.uint8, device=x.device)


@torch.library.custom_op("hwnas::batch_norm", mutates_args=(), device_types="cuda")
def _forward_op(x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and [C, 2]: mean and 1 / std of each channel."""
    x = x.contiguous()
    y, stats = torch.empty_like(x), torch.empty(x.shape[1], 2, device=x.device)
    with torch.cuda.device(x.device):
        addresses = [t.data_ptr() for t in (x, y, stats, _scratch(x))]
        _native.batch_norm.forward_cuda(*_shape(x), *addresses, torch.cuda.current_stream().cuda_stream)
    return y, stats


@_forward_op.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[1], 2, dtype=torch.float32)


@torch.library.custom_op("hwnas::batch_norm_backward", mutates_args=(), device_types="cuda")
def _backward_op(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    with torch.cuda.device(x.device):
        addresses = [t.data_ptr() for t in (dy, x, stats, dx, _scratch(x))]
        _native.batch_norm.backward_cuda(*_shape(x), *addresses, torch.cuda.current_stream().cuda_stream)
    return dx


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> Tensor | None:
    return None if dy is None else _backward_op(dy, *ctx.saved_tensors)


_forward_op.register_autograd(_differentiate, setup_context=_save)
