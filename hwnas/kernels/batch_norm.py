"""Batch norm by the batch's own statistics (biased variance, eps 1e-5), as between search cells; affine if weights are given.

Shapes: `x` is [N, C, ...] in float32 or bfloat16 for the CUDA kernel; `weight` and `bias`, both or neither, are [C] in
float32. Other devices and types take the reference. Returns a contiguous tensor of x's shape and dtype. Nothing keeps running
statistics: a supernet is evaluated with its batch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native

EPS = 1e-5
_TYPES = {torch.float32: 0, torch.bfloat16: 2}


def batch_norm_reference(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The definition, in plain PyTorch, with the same signature."""
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The native kernel where it covers the input's device and dtype, else the reference."""
    fits = x.device.type == "cuda" and _native.with_cuda and x.dtype in _TYPES and x.dim() >= 2 and x.numel() > x.shape[1]
    if fits and all(t is None or _is_affine(t, x) for t in (weight, bias)) and (weight is None) == (bias is None):
        y: Tensor = _forward_op(x, weight, bias)[0]
        return y
    return batch_norm_reference(x, weight, bias)


def _is_affine(t: Tensor, x: Tensor) -> bool:
    return t.shape == x.shape[1:2] and t.dtype == torch.float32 and t.device == x.device


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    n, c = x.shape[:2]
    return n, c, x.numel() // (n * c), _TYPES[x.dtype]


def _scratch(x: Tensor) -> Tensor:
    return torch.empty(_native.batch_norm.scratch_bytes(*x.shape[:2]), dtype=torch.uint8, device=x.device)


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


@torch.library.custom_op("hwnas::batch_norm", mutates_args=(), device_types="cuda")
def _forward_op(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result, and [C, 2]: mean and 1 / std of each channel."""
    x = x.contiguous()
    y, stats = torch.empty_like(x), torch.empty(x.shape[1], 2, dtype=torch.float32, device=x.device)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    with torch.cuda.device(x.device):
        addresses = _addresses(x, weight, bias, y, stats, _scratch(x))
        _native.batch_norm.forward_cuda(*_shape(x), *addresses, torch.cuda.current_stream().cuda_stream)
    return y, stats


@_forward_op.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[1], 2, dtype=torch.float32)


@torch.library.custom_op("hwnas::batch_norm_backward", mutates_args=(), device_types="cuda")
def _backward_op(dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; the last two are empty without weight."""
    dy, x = dy.contiguous(), x.contiguous()
    weight = None if weight is None else weight.contiguous()
    dx, (dweight, dbias) = torch.empty_like(x), (stats.new_empty(0 if weight is None else len(stats)) for _ in range(2))
    with torch.cuda.device(x.device):
        addresses = _addresses(dy, x, weight, stats, dx, dweight, dbias, _scratch(x))
        _native.batch_norm.backward_cuda(*_shape(x), *addresses, torch.cuda.current_stream().cuda_stream)
    return dx, dweight, dbias


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (stats.new_empty(0 if weight is None else len(stats)) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), dweight, dbias


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if dy is None:
        return None, None, None
    x, weight, stats = ctx.saved_tensors
    dx, dweight, dbias = _backward_op(dy, x, weight, stats)
    return (dx, None, None) if weight is None else (dx, dweight, dbias)


_forward_op.register_autograd(_differentiate, setup_context=_save)
