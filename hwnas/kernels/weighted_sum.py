"""`y = sum_o w[o] * x_o`: the blend of a mixed op (DARTS, Liu et al. 2019, equation 2), in one pass over its inputs.

Shapes: `xs` is a list of O tensors of one shape and dtype (float32 or float64; bfloat16 on CUDA), `w` is [O], float32 (float64
with float64 inputs). Returns a tensor of the inputs' shape and dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas import _native

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


def weighted_sum_reference(xs: list[Tensor], w: Tensor) -> Tensor:
    """The definition, in plain PyTorch, with the same signature."""
    return sum((w[o].to(x.dtype) * x for o, x in enumerate(xs)), torch.zeros_like(xs[0]))


def weighted_sum(xs: list[Tensor], w: Tensor) -> Tensor:
    """The native kernel where it covers the inputs' device and dtype, else the reference."""
    if not xs:
        raise ValueError("weighted_sum needs at least one tensor, got none")
    x = xs[0]
    w = w.to(_weight_dtype(x.dtype))
    _check(xs, w)
    native = x.device.type == "cpu" or (x.device.type == "cuda" and _native.with_cuda)
    types = (torch.float32, torch.float64) if x.device.type == "cpu" else tuple(_TYPES)
    if native and x.dtype in types and len(xs) <= _native.weighted_sum.max_terms:
        result: Tensor = _forward_op(xs, w)
        return result
    return weighted_sum_reference(xs, w)


def _weight_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(xs: list[Tensor], w: Tensor) -> None:
    x = xs[0]
    for other in xs:
        if other.shape != x.shape or other.dtype != x.dtype or other.device != x.device:
            raise ValueError(
                f"weighted_sum needs tensors of one shape, dtype and device, got {tuple(x.shape)} {x.dtype} {x.device}"
                f" and {tuple(other.shape)} {other.dtype} {other.device}"
            )
    if w.shape != (len(xs),) or w.dtype != _weight_dtype(x.dtype) or w.device != x.device:
        raise ValueError(
            f"weighted_sum needs w[{len(xs)}] of {_weight_dtype(x.dtype)} on {x.device},"
            f" got {tuple(w.shape)} {w.dtype} on {w.device}"
        )


def _dense(tensors: list[Tensor], like: Tensor) -> list[Tensor]:
    """The tensors in one memory order, so that element i means the same place in each. Channels-last stays as it is."""
    memory_format = torch.contiguous_format
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        memory_format = torch.channels_last
    return [t.contiguous(memory_format=memory_format) for t in tensors]


@torch.library.custom_op("hwnas::weighted_sum", mutates_args=())
def _forward_op(xs: list[Tensor], w: Tensor) -> Tensor:
    _check(xs, w)
    xs = _dense(xs, xs[0])
    w = w.contiguous()
    y = torch.empty_like(xs[0])
    if y.numel() == 0:
        return y
    args = ([x.data_ptr() for x in xs], w.data_ptr(), y.data_ptr(), y.numel(), _TYPES[y.dtype])
    if y.device.type == "cuda":
        with torch.cuda.device(y.device):
            _native.weighted_sum.forward_cuda(*args, torch.cuda.current_stream().cuda_stream)
    else:
        _native.weighted_sum.forward_cpu(*args)
    return y


@_forward_op.register_fake
def _(xs: list[Tensor], w: Tensor) -> Tensor:
    return torch.empty_like(_dense(xs[:1], xs[0])[0])


@torch.library.custom_op("hwnas::weighted_sum_backward", mutates_args=())
def _backward_op(grad: Tensor, xs: list[Tensor], w: Tensor) -> list[Tensor]:
    _check(xs, w)
    grad, *xs = _dense([grad, *xs], xs[0])
    w = w.contiguous()
    dxs = [torch.empty_like(x) for x in xs]
    dw = torch.zeros_like(w)
    if grad.numel() == 0:
        return [dw, *dxs]
    args = (
        [x.data_ptr() for x in xs], w.data_ptr(), grad.data_ptr(), [d.data_ptr() for d in dxs], dw.data_ptr(),
        grad.numel(), _TYPES[grad.dtype],
    )  # fmt: skip
    if grad.device.type == "cuda":
        with torch.cuda.device(grad.device):
            scratch = grad.new_empty(_native.weighted_sum.backward_cuda_scratch(len(xs)), dtype=torch.uint8)
            _native.weighted_sum.backward_cuda(*args, scratch.data_ptr(), torch.cuda.current_stream().cuda_stream)
    else:
        _native.weighted_sum.backward_cpu(*args)
    return [dw, *dxs]


@_backward_op.register_fake
def _(grad: Tensor, xs: list[Tensor], w: Tensor) -> list[Tensor]:
    return [torch.empty_like(w), *(torch.empty_like(x) for x in _dense(list(xs), xs[0]))]


def _save(ctx: object, inputs: tuple[list[Tensor], Tensor], output: Tensor) -> None:
    xs, w = inputs
    ctx.save_for_backward(*xs, w)  # type: ignore[attr-defined]


def _differentiate(ctx: object, grad: Tensor) -> tuple[list[Tensor], Tensor]:
    *xs, w = ctx.saved_tensors  # type: ignore[attr-defined]
    dw, *dxs = _backward_op(grad, list(xs), w)
    return dxs, dw


_forward_op.register_autograd(_differentiate, setup_context=_save)
