"""The mixed cell and the batch norm on CUDA, against their references in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.kernels.batch_norm import _forward_op as batch_norm_op
from hwnas.kernels.batch_norm import batch_norm, batch_norm_reference
from hwnas.kernels.mixed_cell import _forward_op, mixed_cell, mixed_cell_reference
from tests.kernels.cuda_graph import replayed
from tests.kernels.test_mixed_cell import gradients, operands

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_and_poisoned")]

# (n, c, h, w, nodes, reduction): odd sizes, one pixel, channels that no tuned kernel takes; then the search network's.
GENERAL = [
    (2, 4, 6, 5, 2, False), (1, 6, 7, 9, 2, True), (3, 7, 5, 8, 4, False), (1, 2, 1, 1, 1, False),
    (2, 36, 7, 7, 3, True),
    (2, 8, 40, 8, 1, False), (2, 3, 4, 4, 8, False),
    # planes of whole vectors that the elementwise kernels take and the convolutions' tiles do not
    (3, 5, 4, 8, 2, False), (2, 6, 8, 8, 3, False), (1, 4, 1, 8, 1, False), (2, 4, 24, 32, 2, False),
    (3, 6, 4, 16, 2, True), (1, 4, 16, 16, 2, True),
]  # fmt: skip
TUNED = [
    (2, 16, 32, 32, 2, False), (3, 32, 16, 16, 2, False), (3, 64, 8, 8, 4, False), (2, 32, 32, 32, 1, True),
    (3, 64, 16, 16, 2, True), (1, 64, 8, 8, 5, False),
    # a tile's channels at other sizes: too wide, strips of 16 rows
    (1, 16, 64, 64, 2, True), (1, 32, 32, 16, 2, False),
]  # fmt: skip
NAMES = ("y", "ds0", "ds1", "dgates", "ddw", "dpw", "dfr")


def on_gpu(shape, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = operands(*shape, seed=seed)
    return [t.to("cuda", dtype if i < 2 else weights) for i, t in enumerate(tensors)]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-3)) if wanted.numel() else 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GENERAL + TUNED, ids=str)
def test_against_float64(shape, dtype):
    nodes, reduction = shape[4:]
    tensors = on_gpu(shape, dtype)
    wanted = gradients(mixed_cell_reference, [t.double() for t in tensors], nodes, reduction)
    found = gradients(mixed_cell, tensors, nodes, reduction)
    plain = gradients(mixed_cell_reference, tensors, nodes, reduction)
    for name, a, b, p in zip(NAMES, found, wanted, plain, strict=True):
        allowed = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2 * relative(p, b) + 1e-3}[dtype]
        assert relative(a, b) <= max(allowed, relative(p, b)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_twice(dtype):
    tensors = on_gpu((4, 16, 32, 32, 4, False), dtype)
    first, second = (gradients(mixed_cell, tensors, 4, False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graph(dtype):
    shape = (4, 32, 16, 16, 4, False)
    tensors = [t.requires_grad_() for t in on_gpu(shape, dtype)]

    def step() -> list[Tensor]:
        y = mixed_cell(*tensors, 4, False)
        return [y, *torch.autograd.grad(y.float().square().sum(), tensors[:5])]

    for a, b in zip(replayed(step, tensors, on_gpu(shape, dtype, seed=5)), step(), strict=True):
        assert torch.equal(a, b)


def test_other_layouts_and_unaligned_memory():
    shape = (2, 16, 32, 32, 2, False)
    tensors = on_gpu(shape, torch.float32)
    wanted = mixed_cell(*tensors, 2, False)
    last = [t.contiguous(memory_format=torch.channels_last) if i < 2 else t for i, t in enumerate(tensors)]
    assert torch.equal(mixed_cell(*last, 2, False), wanted)
    shifted = torch.empty(tensors[0].numel() + 1, device="cuda")[1:].view_as(tensors[0]).copy_(tensors[0])
    assert relative(mixed_cell(shifted, *tensors[1:], 2, False), wanted.double()) < 1e-6


def off_by_one(t: Tensor) -> Tensor:
    """A copy that begins one element beyond the memory's alignment."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view_as(t).copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 32, 32, 2, False), (2, 64, 16, 16, 2, True)], ids=str)
@pytest.mark.parametrize("unaligned", [("gates", "dw", "pw", "fr"), ("dy",)], ids="-".join)
def test_unaligned_weights_and_upstream_gradient(unaligned, shape, dtype):
    nodes, reduction = shape[4:]
    tensors = on_gpu(shape, dtype)

    def outcome(function, tensors: list[Tensor], move) -> list[Tensor]:
        names = ("s0", "s1", "gates", "dw", "pw", "fr")
        leaves = [move(name, t).requires_grad_() for name, t in zip(names, tensors, strict=True)]
        y = function(*leaves, nodes, reduction)
        dy = move("dy", torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y))
        return [y.detach(), *torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)]

    wanted = outcome(mixed_cell_reference, [t.double() for t in tensors], lambda _, t: t.detach())
    plain = outcome(mixed_cell_reference, tensors, lambda _, t: t.detach())
    found = outcome(mixed_cell, tensors, lambda name, t: off_by_one(t) if name in unaligned else t.detach())
    for name, a, b, p in zip(NAMES, found, wanted, plain, strict=True):
        allowed = 1e-4 if dtype == torch.float32 else 2 * relative(p, b) + 1e-3
        assert relative(a, b) <= max(allowed, relative(p, b)), name


def test_compiles_and_passes_opcheck():
    tensors = [t.requires_grad_() for t in on_gpu((2, 4, 6, 6, 2, True), torch.float32)]
    torch.library.opcheck(_forward_op, (*tensors, 2, True))
    torch.library.opcheck(batch_norm_op, (tensors[0], None, None))
    weights = [torch.rand(4, device="cuda", requires_grad=True) for _ in range(2)]
    torch.library.opcheck(batch_norm_op, (tensors[0], *weights))
    compiled = torch.compile(lambda *t: mixed_cell(*t, 2, True), fullgraph=True)
    assert torch.equal(compiled(*tensors), mixed_cell(*tensors, 2, True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_second_device():
    tensors = on_gpu((2, 16, 32, 32, 2, False), torch.float32)
    there = [t.to("cuda:1") for t in tensors]
    for a, b in zip(gradients(mixed_cell, there, 2, False), gradients(mixed_cell, tensors, 2, False), strict=True):
        assert a.device.index == 1
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (3, 5, 7, 5), (1, 3, 9, 3), (7, 64, 8, 8)], ids=str)
def test_batch_norm(shape, dtype, affine):
    rng = torch.Generator().manual_seed(0)
    x, dy = ((2 * torch.randn(shape, generator=rng) + 1).to("cuda", dtype) for _ in range(2))
    weights = [torch.randn(shape[1], generator=rng).cuda() for _ in range(2 * affine)]

    def outcome(function, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, *weights)]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]

    wanted = outcome(batch_norm_reference, x.double(), [w.double() for w in weights])
    plain = outcome(batch_norm_reference, x, weights)
    for a, b, p in zip(outcome(batch_norm, x, weights), wanted, plain, strict=True):
        assert relative(a, b) <= max(1e-6, 2 * relative(p, b))
