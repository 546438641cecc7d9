"""The mixed-op part of one DARTS search cell (Liu et al. 2019): states s0 and s1 in, the concatenated nodes out.

Node i is `sum_j sum_o gates[e, o] * op_o(state_j)` over the 2 + i states before it, edges e = (i, j) numbered in that
order. Ops o: none, 3x3 max pool + BN, 3x3 average pool + BN (padding not counted), skip (factorized reduce at stride
2), separable convs 3x3 and 5x5 (ReLU-depthwise-pointwise-BN twice), dilated convs 3x3 and 5x5 (the same once). Batch
norm has no affine and uses the batch's own statistics. In a reduction cell the edges from s0 and s1 have stride 2.

Shapes, with E = nodes * (nodes + 3) / 2 edges and R = 2 * nodes edges of stride 2 (0 in a normal cell):
    s0, s1  [N, C, H, W]       float32 or float64; on CUDA float32 or bfloat16
    gates   [E, 8]             this and the weights in float32, float64 with float64 states
    dw      [E, 102 * C]       depthwise weights of an edge, conv after conv (see `CONVS`), each [C, k, k]
    pw      [E, 6, C, C]       pointwise weights (conv, out, in)
    fr      [R, C, C]          factorized reduce: rows [:C/2] see x[::2, ::2], rows [C/2:] x[1::2, 1::2], 0 outside
    result  [N, nodes * C, H', W'], channels last; H' = ceil(H / 2) in a reduction cell, else H
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native
from hwnas.kernels.memory import uninitialised_bytes

OPS = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
# The convolutions of an edge as (kernel, dilation): both halves of separable 3x3, both of 5x5, the two dilated ones.
CONVS = ((3, 1), (3, 1), (5, 1), (5, 1), (3, 2), (5, 2))
DW_PER_CHANNEL = sum(k * k for k, _ in CONVS)
EPS = 1e-5

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_NATIVE_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16),
}
_LAYOUT = {"cpu": torch.channels_last, "cuda": torch.contiguous_format}  # what each device's kernel reads and writes


def layout(device: str) -> torch.memory_format:
    """The memory format in which the kernel of a device reads states and writes its result."""
    return _LAYOUT.get(device, torch.contiguous_format)


def edges(nodes: int) -> int:
    return nodes * (nodes + 3) // 2


def reduced_edges(nodes: int, reduction: bool) -> int:
    return 2 * nodes if reduction else 0


def mixed_cell(
    s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor, nodes: int, reduction: bool
) -> Tensor:
    """The native kernel where it covers the states' device and dtype, else the reference."""
    weight = _weight_dtype(s0.dtype)
    gates, dw, pw, fr = gates.to(weight), dw.to(weight), pw.to(weight), fr.to(weight)
    _check(s0, s1, gates, dw, pw, fr, nodes, reduction)
    device = s0.device.type
    if s0.dtype in _NATIVE_DTYPES.get(device, ()) and (device == "cpu" or _native.with_cuda):
        y: Tensor = _forward_op(s0, s1, gates, dw, pw, fr, nodes, reduction)[0]
        return y
    return mixed_cell_reference(s0, s1, gates, dw, pw, fr, nodes, reduction)


def mixed_cell_reference(
    s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor, nodes: int, reduction: bool
) -> Tensor:
    """The definition, in plain PyTorch, with the same signature; any floating dtype."""
    states = [s0, s1]
    edge = reduced = 0
    for _ in range(nodes):
        node = None
        for source, x in enumerate(states):
            stride = 2 if reduction and source < 2 else 1
            y = _mixed_op(x, gates[edge], dw[edge], pw[edge], fr[reduced] if stride == 2 else None)
            node = y if node is None else node + y
            edge += 1
            reduced += stride == 2
        assert node is not None
        states.append(node)
    return torch.cat(states[2:], 1)


def _mixed_op(x: Tensor, gate: Tensor, dw: Tensor, pw: Tensor, fr: Tensor | None) -> Tensor:
    stride = 1 if fr is None else 2
    c = x.shape[1]
    sizes = [k * k * c for k, _ in CONVS]
    depthwise = [w.to(x.dtype).view(c, 1, k, k) for w, (k, _) in zip(torch.split(dw, sizes), CONVS, strict=True)]
    pointwise = [w.to(x.dtype)[:, :, None, None] for w in pw.unbind()]

    def conv(x: Tensor, which: int, stride: int) -> Tensor:
        k, dilation = CONVS[which]
        u = F.conv2d(F.relu(x), depthwise[which], None, stride, k // 2 * dilation, dilation, groups=c)
        return _batch_norm(F.conv2d(u, pointwise[which]))

    ops = (
        _batch_norm(F.max_pool2d(x, 3, stride, 1)),
        _batch_norm(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)),
        x if fr is None else _factorized_reduce(x, fr.to(x.dtype)),
        conv(conv(x, 0, stride), 1, 1),
        conv(conv(x, 2, stride), 3, 1),
        conv(x, 4, stride),
        conv(x, 5, stride),
    )
    return sum((w * y for w, y in zip(gate.to(x.dtype)[1:], ops, strict=True)), torch.zeros_like(ops[0]))


def _factorized_reduce(x: Tensor, fr: Tensor) -> Tensor:
    half = fr.shape[0] // 2
    x = F.pad(F.relu(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
    y = [F.conv2d(even, fr[:half, :, None, None]), F.conv2d(odd, fr[half:, :, None, None])]
    return _batch_norm(torch.cat(y, 1))


def _batch_norm(x: Tensor) -> Tensor:
    if x.numel() == x.shape[1]:
        return x - x  # one value a channel is its own mean; PyTorch refuses it
    return F.batch_norm(x, None, None, training=True, eps=EPS)


def _weight_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor, nodes: int, reduction: bool) -> None:
    if nodes < 1:
        raise ValueError(f"mixed_cell needs at least one node, got nodes={nodes}; DARTS uses 4")
    if s0.dim() != 4 or min(s0.shape) < 1:
        raise ValueError(
            f"mixed_cell needs s0[N, C, H, W] without empty dimensions, got {tuple(s0.shape)};"
            " batch norm has no statistics of an empty batch: skip it"
        )
    if s1.shape != s0.shape or s1.dtype != s0.dtype or s1.device != s0.device:
        raise ValueError(
            "mixed_cell needs s0 and s1 of one shape, dtype and device,"
            f" got {tuple(s0.shape)} {s0.dtype} {s0.device} and {tuple(s1.shape)} {s1.dtype} {s1.device};"
            " preprocess both to the cell's width and size"
        )
    c = s0.shape[1]
    if reduction and c % 2:
        raise ValueError(f"mixed_cell needs an even C in a reduction cell, got C={c}: each half has its own conv")
    e, r, dtype = edges(nodes), reduced_edges(nodes, reduction), _weight_dtype(s0.dtype)
    expected = {
        "gates": (gates, (e, len(OPS))),
        "dw": (dw, (e, DW_PER_CHANNEL * c)),
        "pw": (pw, (e, len(CONVS), c, c)),
        "fr": (fr, (r, c, c)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != s0.device:
            raise ValueError(
                f"mixed_cell needs {name}{list(shape)} of {dtype} on {s0.device} with nodes={nodes}, C={c},"
                f" reduction={reduction}, got {list(tensor.shape)} {tensor.dtype} on {tensor.device};"
                " see the shapes at the head of hwnas/kernels/mixed_cell.py"
            )


def _result(s0: Tensor, nodes: int, reduction: bool) -> Tensor:
    n, c, h, w = s0.shape
    size = (n, nodes * c, (h + 1) // 2, (w + 1) // 2) if reduction else (n, nodes * c, h, w)
    return torch.empty(size, dtype=s0.dtype, device=s0.device, memory_format=_LAYOUT[s0.device.type])


def _gradients(
    s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for the gradients, in the order that the kernel writes."""
    state, dense = _LAYOUT[s0.device.type], torch.contiguous_format
    return (
        torch.empty_like(s0, memory_format=state), torch.empty_like(s1, memory_format=state),
        torch.empty_like(gates, memory_format=dense), torch.empty_like(dw, memory_format=dense),
        torch.empty_like(pw, memory_format=dense), torch.empty_like(fr, memory_format=dense),
    )  # fmt: skip


def _byte_count(what: str, s0: Tensor, nodes: int, reduction: bool) -> int:
    count: int = getattr(_native.mixed_cell, f"{what}_bytes_{s0.device.type}")(*_shape(s0, nodes, reduction))
    return count


def _bytes(what: str, s0: Tensor, nodes: int, reduction: bool) -> Tensor:
    return uninitialised_bytes(_byte_count(what, s0, nodes, reduction), s0.device)


def _shape(s0: Tensor, nodes: int, reduction: bool) -> tuple[int, int, int, int, int, bool, int]:
    n, c, h, w = s0.shape
    return n, c, h, w, nodes, reduction, _TYPES[s0.dtype]


def _launch(step: str, s0: Tensor, nodes: int, reduction: bool, *tensors: Tensor) -> None:
    """Calls `forward` or `backward` of the device: tensors in the order of its parameter struct, scratch last."""
    launch = getattr(_native.mixed_cell, f"{step}_{s0.device.type}")
    scratch = _bytes(f"{step}_scratch", s0, nodes, reduction)
    addresses = [t.data_ptr() for t in (*tensors, scratch)]
    if s0.device.type == "cuda":
        with torch.cuda.device(s0.device):
            launch(_shape(s0, nodes, reduction), addresses, torch.cuda.current_stream().cuda_stream)
    else:
        launch(_shape(s0, nodes, reduction), addresses, torch.get_num_threads())


def _inputs(s0: Tensor, s1: Tensor, *parameters: Tensor) -> list[Tensor]:
    """The operands in the memory order that the kernel reads; copies only what is in another."""
    layout = _LAYOUT[s0.device.type]
    return [*(s.contiguous(memory_format=layout) for s in (s0, s1)), *(p.contiguous() for p in parameters)]


@torch.library.custom_op("hwnas::mixed_cell", mutates_args=())
def _forward_op(
    s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor, nodes: int, reduction: bool
) -> tuple[Tensor, Tensor]:
    """The result, and the bytes that backward wants back."""
    _check(s0, s1, gates, dw, pw, fr, nodes, reduction)
    y, saved = _result(s0, nodes, reduction), _bytes("saved", s0, nodes, reduction)
    _launch("forward", s0, nodes, reduction, *_inputs(s0, s1, gates, dw, pw, fr), y, saved)
    return y, saved


@_forward_op.register_fake
def _(
    s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor, nodes: int, reduction: bool
) -> tuple[Tensor, Tensor]:
    saved = torch.empty(_byte_count("saved", s0, nodes, reduction), dtype=torch.uint8, device=s0.device)
    return _result(s0, nodes, reduction), saved


@torch.library.custom_op("hwnas::mixed_cell_backward", mutates_args=())
def _backward_op(
    dy: Tensor, s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor,
    y: Tensor, saved: Tensor, nodes: int, reduction: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of s0, s1, gates, dw, pw and fr."""
    _check(s0, s1, gates, dw, pw, fr, nodes, reduction)
    expected = _result(s0, nodes, reduction)
    if dy.shape != expected.shape or dy.dtype != expected.dtype or dy.device != expected.device:
        raise ValueError(
            f"mixed_cell's backward needs dy{list(expected.shape)} of {expected.dtype} on {expected.device}, like y,"
            f" got {list(dy.shape)} {dy.dtype} on {dy.device}"
        )
    gradients = _gradients(s0, s1, gates, dw, pw, fr)
    dy, y = (t.contiguous(memory_format=_LAYOUT[s0.device.type]) for t in (dy, y))
    _launch("backward", s0, nodes, reduction, *_inputs(s0, s1, gates, dw, pw, fr), saved, y, dy, *gradients)
    return gradients


@_backward_op.register_fake
def _(
    dy: Tensor, s0: Tensor, s1: Tensor, gates: Tensor, dw: Tensor, pw: Tensor, fr: Tensor,
    y: Tensor, saved: Tensor, nodes: int, reduction: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _gradients(s0, s1, gates, dw, pw, fr)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.nodes, ctx.reduction = inputs
    ctx.set_materialize_grads(False)  # else autograd makes zeros as large as `saved`
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    return (*_backward_op(dy, *ctx.saved_tensors, ctx.nodes, ctx.reduction), None, None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
