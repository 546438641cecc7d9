"""The two pixel grids that a factorized reduce reads, side by side: `cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1)`.

Shapes: `x` is [N, C, H, W]; the result is [N, 2C, ceil(H/2), ceil(W/2)], zero where the odd grid lies beyond the border,
contiguous, of x's type. The CUDA kernel takes float32 and bfloat16 with an even H and a W in whole 32 bytes; everything else
takes the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native
from hwnas.kernels.memory import aligned

_BYTES = {torch.float32: 4, torch.bfloat16: 2}
Sizes = tuple[int, int, int, int, int]


def pixel_grids_reference(x: Tensor) -> Tensor:
    """The definition, in plain PyTorch, with the same signature."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1)


def pixel_grids(x: Tensor) -> Tensor:
    """The native kernel where it covers the input's device, dtype and shape, else the reference."""
    if x.device.type == "cuda" and _native.with_cuda and x.dtype in _BYTES and x.dim() == 4 and covers_shape(x):
        y: Tensor = _forward_op(x)
        return y
    return pixel_grids_reference(x)


def covers_shape(x: Tensor) -> bool:
    """Whether the native kernel takes images of this shape."""
    n, c, h, w = x.shape
    return n * c * h * w > 0 and h % 2 == 0 and w * x.element_size() % 32 == 0


def _sizes(x: Tensor) -> Sizes:
    n, c, h, w = x.shape
    return n, c, h, w, _BYTES[x.dtype]


def _grids(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty(n, 2 * c, h // 2, w // 2)


@torch.library.custom_op("hwnas::pixel_grids", mutates_args=(), device_types="cuda")
def _forward_op(x: Tensor) -> Tensor:
    x, y = aligned(x), _grids(x)
    with torch.cuda.device(x.device):
        _native.pixel_grids.forward_cuda(_sizes(x), x.data_ptr(), y.data_ptr(), torch.cuda.current_stream().cuda_stream)
    return y


@_forward_op.register_fake
def _(x: Tensor) -> Tensor:
    return _grids(x)


@torch.library.custom_op("hwnas::pixel_grids_backward", mutates_args=(), device_types="cuda")
def _backward_op(dy: Tensor) -> Tensor:
    dy, dx = aligned(dy), _pixels(dy)
    with torch.cuda.device(dy.device):
        _native.pixel_grids.backward_cuda(_sizes(dx), dy.data_ptr(), dx.data_ptr(), torch.cuda.current_stream().cuda_stream)
    return dx


def _pixels(dy: Tensor) -> Tensor:
    n, c, h, w = dy.shape
    return dy.new_empty(n, c // 2, 2 * h, 2 * w)


@_backward_op.register_fake
def _(dy: Tensor) -> Tensor:
    return _pixels(dy)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None) -> Tensor | None:
    return None if dy is None else _backward_op(dy)


_forward_op.register_autograd(_differentiate, setup_context=_save)
