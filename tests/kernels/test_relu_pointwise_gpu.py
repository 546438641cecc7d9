"""ReLU and 1 x 1 convolution on CUDA, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.kernels.relu_pointwise import _forward_op, relu_pointwise, relu_pointwise_reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_and_poisoned")]

# (n, c, h, w, channels out): the search network's, more tiles than blocks, one tile; then what the kernel does not cover.
SHAPES = [
    (2, 48, 32, 32, 16), (3, 64, 32, 32, 16), (5, 64, 16, 16, 32), (2, 128, 16, 16, 32), (3, 128, 8, 8, 64), (2, 256, 8, 8, 64),
    (70, 16, 32, 32, 32), (1, 16, 16, 8, 16), (1, 256, 16, 8, 32), (2, 16, 8, 8, 64), (300, 32, 8, 8, 64), (2, 256, 16, 16, 16),
    (2, 20, 5, 7, 8), (1, 16, 8, 8, 16),
]  # fmt: skip


def operands(shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w, out = shape
    rng = torch.Generator().manual_seed(0)
    x, dz = (torch.randn(size, generator=rng).to("cuda", dtype) for size in ((n, c, h, w), (n, out, h, w)))
    return x, torch.randn(out, c, generator=rng).cuda() * c**-0.5, dz


def outcome(function, x: Tensor, weight: Tensor, dz: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, weight)]
    z = function(*leaves)
    return [z.detach(), *torch.autograd.grad(z, leaves, dz)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, dtype):
    tensors = operands(shape, dtype)
    wanted = outcome(relu_pointwise_reference, *(t.double() for t in tensors))
    plain = outcome(relu_pointwise_reference, *tensors)
    found = outcome(relu_pointwise, *tensors)
    again = outcome(relu_pointwise, *tensors)
    for name, a, b, p, bits in zip(("z", "dx", "dw"), found, wanted, plain, again, strict=True):
        error, allowed = (float((t.double() - b).norm() / b.norm()) for t in (a, p))
        assert error <= max(3e-6, 2 * allowed), name
        assert torch.equal(a, bits), name


def test_other_layouts_and_unaligned_memory():
    x, weight, dz = operands((2, 64, 16, 16, 32), torch.float32)
    wanted = outcome(relu_pointwise, x, weight, dz)
    shifted = [torch.empty(t.numel() + 1, device="cuda")[1:].view_as(t).copy_(t) for t in (x, weight, dz)]
    x_last, dz_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, dz))
    last = [x_last, weight.t().contiguous().t(), dz_last]
    for tensors in (shifted, last):
        for a, b in zip(outcome(relu_pointwise, *tensors), wanted, strict=True):
            assert torch.equal(a, b)


def test_opcheck():
    x, weight, _ = operands((2, 64, 16, 16, 32), torch.float32)
    torch.library.opcheck(_forward_op, (x.requires_grad_(), weight.requires_grad_()))
