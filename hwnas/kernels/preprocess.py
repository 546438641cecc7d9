"""What brings the two inputs of a DARTS cell to its width: ReLU, 1 x 1 convolution without bias, batch norm without affine.

If the cell before was a reduction, the older input is twice as large, and a factorized reduce takes the place of its
convolution.

Shapes: `older` is [N, C0, H0, W0] and `newer` [N, C1, H, W], `w_older` [C, C0] and `w_newer` [C, C1] in float32; H0 and W0 are
H and W, or with `reduced` twice as many, one less where odd: then rows [:C/2] of `w_older` see older[:, :, ::2, ::2] and rows
[C/2:] older[:, :, 1::2, 1::2]. The results are two [N, C, H, W]. The CUDA kernels take what relu_pointwise, pixel_grids and
batch_norm cover; everything else takes the reference. Both inputs are one call because each is a chain of launches too small to
fill a device: the two chains run beside each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hwnas import _native
from hwnas.kernels.batch_norm import batch_norm_reference
from hwnas.kernels.memory import aligned
from hwnas.kernels.pixel_grids import covers_shape, pixel_grids_reference
from hwnas.kernels.relu_pointwise import TYPES, Sizes, covers_sizes, operand_sizes, relu_pointwise_reference

_streams = threading.local()


def preprocess_reference(
    older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor, reduced: bool
) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch, with the same signature."""
    if reduced:
        grids = zip(pixel_grids_reference(older).chunk(2, 1), w_older.chunk(2), strict=True)
        first = torch.cat([relu_pointwise_reference(x, w) for x, w in grids], 1)
    else:
        first = relu_pointwise_reference(older, w_older)
    return batch_norm_reference(first), batch_norm_reference(relu_pointwise_reference(newer, w_newer))


def preprocess(older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor, reduced: bool) -> tuple[Tensor, Tensor]:
    """The native kernels where they cover the inputs' device, dtype and shapes, else the reference."""
    if _covers(older, newer, w_older, w_newer, reduced):
        first, second, *_ = _forward_op(older, newer, w_older, w_newer, reduced)
        return first, second
    return preprocess_reference(older, newer, w_older, w_newer, reduced)


def _covers(older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor, reduced: bool) -> bool:
    tensors = older, newer, w_older, w_newer
    if not _native.with_cuda or any(t.device != older.device or t.device.type != "cuda" for t in tensors):
        return False
    if older.dtype not in TYPES or newer.dtype != older.dtype or any(w.dtype != torch.float32 for w in tensors[2:]):
        return False
    if (
        older.dim() != 4
        or newer.dim() != 4
        or any(w.shape[1:] != x.shape[1:2] for x, w in ((older, w_older), (newer, w_newer)))
    ):
        return False
    times = 2 if reduced else 1
    if w_older.shape[0] != w_newer.shape[0] or older.shape[0] != newer.shape[0]:
        return False
    if [size // times for size in older.shape[2:]] != list(newer.shape[2:]):
        return False
    if reduced and not covers_shape(older):
        return False
    return all(covers_sizes(s, older.device) for s in (_older_sizes(older, w_older, reduced), operand_sizes(newer, w_newer)))


def _older_sizes(x: Tensor, w: Tensor, reduced: bool) -> Sizes:
    """Of the product: on pixel grids there are twice the channels and a quarter of the pixels."""
    n, c, out, pixels, dtype = operand_sizes(x, w)
    return (n, 2 * c, out, pixels // 4, dtype) if reduced else (n, c, out, pixels, dtype)


def _block_diagonal(w: Tensor) -> Tensor:
    """[C, C0] -> [C, 2 * C0]: the weights of both pixel grids as one matrix."""
    rows, columns = w.shape[0] // 2, w.shape[1]
    wide = w.new_zeros(w.shape[0], 2 * columns)
    wide[:rows, :columns], wide[rows:, columns:] = w[:rows], w[rows:]
    return wide


@contextmanager
def _two_streams(device: torch.device) -> Iterator[tuple[int, int]]:
    """The current stream, and one beside it that is joined in the end, also if a launch fails: memory is given back then."""
    held: dict[torch.device, torch.cuda.Stream] = _streams.__dict__.setdefault("held", {})
    if device not in held:  # one a thread, because its work may be part of a capture
        held[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    here, side = torch.cuda.current_stream(device), held[device]
    side.wait_stream(here)
    try:
        yield here.cuda_stream, side.cuda_stream
    finally:
        here.wait_stream(side)


def _results(newer: Tensor, w_newer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for an input's result, its values before the norm, and their statistics."""
    shape = (newer.shape[0], w_newer.shape[0], *newer.shape[2:])
    return newer.new_empty(shape), newer.new_empty(shape), newer.new_empty(shape[1], 2, dtype=torch.float32)


def _grids_of(older: Tensor, reduced: bool) -> Tensor:
    """Memory for the pixel grids, empty if there are none."""
    n, c, h, w = older.shape
    return older.new_empty(n, 2 * c, h // 2, w // 2) if reduced else older.new_empty(0)


def _norm_scratch(z: Tensor) -> Tensor:
    return torch.empty(_native.batch_norm.scratch_bytes(*z.shape[:2]), dtype=torch.uint8, device=z.device)


def _forward(x: Tensor, w: Tensor, y: Tensor, z: Tensor, stats: Tensor, scratch: Tensor, stream: int) -> None:
    sizes = operand_sizes(x, w)
    _native.relu_pointwise.forward_cuda(sizes, x.data_ptr(), w.data_ptr(), z.data_ptr(), stream)
    norm = z.data_ptr(), 0, 0, y.data_ptr(), stats.data_ptr(), scratch.data_ptr()
    _native.batch_norm.forward_cuda(sizes[0], *sizes[2:], *norm, stream)


def _backward(
    dy: Tensor, x: Tensor, w: Tensor, z: Tensor, stats: Tensor, dz: Tensor, dx: Tensor, dw: Tensor,
    scratch: tuple[Tensor, Tensor], stream: int,
) -> None:  # fmt: skip
    sizes = operand_sizes(x, w)
    norm = dy.data_ptr(), z.data_ptr(), 0, stats.data_ptr(), dz.data_ptr(), 0, 0, scratch[0].data_ptr()
    _native.batch_norm.backward_cuda(sizes[0], *sizes[2:], *norm, stream)
    addresses = [t.data_ptr() for t in (dz, x, w, dx, dw, scratch[1])]
    _native.relu_pointwise.backward_cuda(sizes, *addresses, stream)


@torch.library.custom_op("hwnas::preprocess", mutates_args=(), device_types="cuda")
def _forward_op(
    older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor, reduced: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both results; then what backward wants back: both before the norm, their statistics, and the pixel grids."""
    older, newer, w_older, w_newer = (aligned(t) for t in (older, newer, w_older, w_newer))
    first, second = _results(newer, w_newer), _results(newer, w_newer)
    scratch, grids = [_norm_scratch(z) for _, z, _ in (first, second)], _grids_of(older, reduced)
    x, w = (grids, _block_diagonal(w_older)) if reduced else (older, w_older)
    with torch.cuda.device(newer.device), _two_streams(newer.device) as (here, side):
        if reduced:
            sizes = (*older.shape, older.element_size())
            _native.pixel_grids.forward_cuda(sizes, older.data_ptr(), grids.data_ptr(), here)
        _forward(newer, w_newer, *second, scratch[1], side)
        _forward(x, w, *first, scratch[0], here)
    (y0, z0, stats0), (y1, z1, stats1) = first, second
    return y0, y1, z0, z1, stats0, stats1, grids


@_forward_op.register_fake
def _(
    older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor, reduced: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (y0, z0, stats0), (y1, z1, stats1) = _results(newer, w_newer), _results(newer, w_newer)
    return y0, y1, z0, z1, stats0, stats1, _grids_of(older, reduced)


@torch.library.custom_op("hwnas::preprocess_backward", mutates_args=(), device_types="cuda")
def _backward_op(
    dy0: Tensor, dy1: Tensor, older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor,
    z0: Tensor, z1: Tensor, stats0: Tensor, stats1: Tensor, grids: Tensor, reduced: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the two inputs and of their weights."""
    dy0, dy1, newer, w_older, w_newer = (aligned(t) for t in (dy0, dy1, newer, w_older, w_newer))
    x, w = (grids, _block_diagonal(w_older)) if reduced else (aligned(older), w_older)
    dz0, dz1, dx, dx1, dw, dw1 = (torch.empty_like(t) for t in (z0, z1, x, newer, w, w_newer))
    dx0 = older.new_empty(older.shape) if reduced else dx
    pairs = [(t, _native.relu_pointwise.scratch_bytes(operand_sizes(*xw))) for t, xw in ((z0, (x, w)), (z1, (newer, w_newer)))]
    scratch = [(_norm_scratch(z), torch.empty(size, dtype=torch.uint8, device=z.device)) for z, size in pairs]
    with torch.cuda.device(newer.device), _two_streams(newer.device) as (here, side):
        _backward(dy1, newer, w_newer, z1, stats1, dz1, dx1, dw1, scratch[1], side)
        _backward(dy0, x, w, z0, stats0, dz0, dx, dw, scratch[0], here)
        if reduced:
            sizes = (*older.shape, older.element_size())
            _native.pixel_grids.backward_cuda(sizes, dx.data_ptr(), dx0.data_ptr(), here)
    if reduced:
        rows, columns = w_older.shape[0] // 2, w_older.shape[1]
        dw = torch.cat([dw[:rows, :columns], dw[rows:, columns:]])
    return dx0, dx1, dw, dw1


@_backward_op.register_fake
def _(
    dy0: Tensor, dy1: Tensor, older: Tensor, newer: Tensor, w_older: Tensor, w_newer: Tensor,
    z0: Tensor, z1: Tensor, stats0: Tensor, stats1: Tensor, grids: Tensor, reduced: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx0, dx1, dw0, dw1 = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (older, newer, w_older, w_newer))
    return dx0, dx1, dw0, dw1


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reduced = inputs
    ctx.set_materialize_grads(False)  # else autograd makes zeros of everything that is only kept
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate(ctx: Any, dy0: Tensor | None, dy1: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy0 is None and dy1 is None:
        return (None,) * 5
    z0, z1 = ctx.saved_tensors[4:6]
    gradients = (torch.zeros_like(z) if dy is None else dy for dy, z in ((dy0, z0), (dy1, z1)))
    return (*_backward_op(*gradients, *ctx.saved_tensors, ctx.reduced), None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
