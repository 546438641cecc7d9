"""One cell of the NAS-Bench-201 supernet (Dong and Yang 2020), all candidate ops of all edges blended.

State 0 is x, state j is `sum_{i < j} sum_o gates[e, o] * op_o(state_i)`, the last state is the result. Edges e = (i, j)
are numbered by node, then by source: (0, 1), (0, 2), (1, 2), (0, 3), ... Ops o: none, skip, ReLU-conv1x1-BN,
ReLU-conv3x3-BN, 3x3 average pool (padding not counted, no BN). Batch norm has no affine and uses the batch's own
statistics.

Shapes, with E = states * (states - 1) / 2 edges:
    x       [N, C, H, W]     native in float32 and float64 on the CPU, else the reference
    gates   [E, 5]           this and the weights in float32, float64 with float64 states
    w1      [E, C, C]        (out, in)
    w3      [E, C, C, 3, 3]
    result  [N, C, H, W], channels last
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas import _native
from hwnas.kernels.memory import uninitialised_bytes

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EPS = 1e-5

_TYPES = {torch.float32: 0, torch.float64: 1}


def edges(states: int) -> int:
    return states * (states - 1) // 2


def nb201_cell(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, states: int = 4) -> Tensor:
    """The native kernel where it covers the device and dtype of x, else the reference."""
    weight = _weight_dtype(x.dtype)
    gates, w1, w3 = gates.to(weight), w1.to(weight), w3.to(weight)
    _check(x, gates, w1, w3, states)
    if x.device.type == "cpu" and x.dtype in _TYPES:
        y: Tensor = _forward_op(x, gates, w1, w3, states)[0]
        return y
    return nb201_cell_reference(x, gates, w1, w3, states)


def nb201_cell_reference(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, states: int = 4) -> Tensor:
    """The definition, in plain PyTorch, with the same signature; any floating dtype."""
    nodes = [x]
    edge = 0
    for _ in range(1, states):
        node = torch.zeros_like(x)
        for source in nodes:
            gate, a = gates[edge].to(x.dtype), F.relu(source)
            ops = (
                source,
                _batch_norm(F.conv2d(a, w1[edge].to(x.dtype)[:, :, None, None])),
                _batch_norm(F.conv2d(a, w3[edge].to(x.dtype), padding=1)),
                F.avg_pool2d(source, 3, 1, 1, count_include_pad=False),
            )
            for w, y in zip(gate[1:], ops, strict=True):
                node = node + w * y
            edge += 1
        nodes.append(node)
    return nodes[-1]


def _batch_norm(x: Tensor) -> Tensor:
    if x.numel() == x.shape[1]:
        return x - x  # one value a channel is its own mean; PyTorch refuses it
    return F.batch_norm(x, None, None, training=True, eps=EPS)


def _weight_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, states: int) -> None:
    if states < 2:
        raise ValueError(f"nb201_cell needs at least two states, got states={states}; NAS-Bench-201 uses 4")
    if x.dim() != 4 or min(x.shape) < 1:
        raise ValueError(
            f"nb201_cell needs x[N, C, H, W] without empty dimensions, got {list(x.shape)};"
            " batch norm has no statistics of an empty batch: skip it"
        )
    c, e, dtype = x.shape[1], edges(states), _weight_dtype(x.dtype)
    expected = {"gates": (gates, (e, len(OPS))), "w1": (w1, (e, c, c)), "w3": (w3, (e, c, c, 3, 3))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != x.device:
            raise ValueError(
                f"nb201_cell needs {name}{list(shape)} of {dtype} on {x.device} with states={states}, C={c},"
                f" got {list(tensor.shape)} {tensor.dtype} on {tensor.device};"
                " see the shapes at the head of hwnas/kernels/nb201_cell.py"
            )


def _shape(x: Tensor, states: int) -> tuple[int, int, int, int, int, int]:
    n, c, h, w = x.shape
    return n, c, h, w, states, _TYPES[x.dtype]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _launch(step: str, x: Tensor, states: int, *tensors: Tensor) -> None:
    """Calls `forward` or `backward` with the tensors in the order of its parameter struct, scratch last."""
    count = getattr(_native.nb201_cell, f"{step}_scratch_bytes")(_shape(x, states))
    scratch = uninitialised_bytes(count, x.device)
    addresses = [t.data_ptr() for t in (*tensors, scratch)]
    getattr(_native.nb201_cell, step)(_shape(x, states), addresses, torch.get_num_threads())


def _inputs(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return [x.contiguous(memory_format=torch.channels_last), *(p.contiguous() for p in parameters)]


@torch.library.custom_op("hwnas::nb201_cell", mutates_args=(), device_types="cpu")
def _forward_op(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """The result, and the bytes that backward wants back."""
    _check(x, gates, w1, w3, states)
    y, saved = _like(x), uninitialised_bytes(_native.nb201_cell.saved_bytes(_shape(x, states)), x.device)
    _launch("forward", x, states, *_inputs(x, gates, w1, w3), y, saved)
    return y, saved


@_forward_op.register_fake
def _(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, states: int) -> tuple[Tensor, Tensor]:
    count = _native.nb201_cell.saved_bytes(_shape(x, states))
    return _like(x), torch.empty(count, dtype=torch.uint8, device=x.device)


@torch.library.custom_op("hwnas::nb201_cell_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    dy: Tensor, x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, saved: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gates, w1 and w3."""
    _check(x, gates, w1, w3, states)
    if dy.shape != x.shape or dy.dtype != x.dtype or dy.device != x.device:
        raise ValueError(
            f"nb201_cell's backward needs dy{list(x.shape)} of {x.dtype} on {x.device}, like x,"
            f" got {list(dy.shape)} {dy.dtype} on {dy.device}"
        )
    gradients = _gradients(x, gates, w1, w3)
    dy = dy.contiguous(memory_format=torch.channels_last)
    _launch("backward", x, states, *_inputs(x, gates, w1, w3), saved, dy, *gradients)
    return gradients


@_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor, saved: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(x, gates, w1, w3)


def _gradients(x: Tensor, gates: Tensor, w1: Tensor, w3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the gradients, in the order that the kernel writes."""
    dense = torch.contiguous_format
    return (
        _like(x), torch.empty_like(gates, memory_format=dense),
        torch.empty_like(w1, memory_format=dense), torch.empty_like(w3, memory_format=dense),
    )  # fmt: skip


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.states = inputs
    ctx.set_materialize_grads(False)  # else autograd makes zeros as large as `saved`
    ctx.save_for_backward(*tensors, output[1])


def _differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 5
    return (*_backward_op(dy, *ctx.saved_tensors, ctx.states), None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
