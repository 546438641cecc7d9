"""The preprocess blocks and the pixel grids on CUDA, against the references in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.kernels.pixel_grids import _forward_op as pixel_grids_op
from hwnas.kernels.pixel_grids import pixel_grids, pixel_grids_reference
from hwnas.kernels.preprocess import _covers, _forward_op, preprocess, preprocess_reference
from tests.kernels.cuda_graph import replayed

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_and_poisoned")]

# (n, older channels, newer channels, h, w, channels out, reduced), h and w of the results: the search network's, and more batch
COVERED = [
    (2, 48, 48, 32, 32, 16, False), (3, 64, 128, 16, 16, 32, False), (5, 128, 256, 8, 8, 64, False),
    (3, 64, 128, 16, 16, 32, True), (2, 128, 256, 8, 8, 64, True), (70, 16, 16, 8, 16, 32, True),
]  # fmt: skip
OTHER = [(2, 20, 12, 5, 7, 8, False), (2, 16, 16, 5, 7, 32, True), (2, 256, 64, 16, 16, 32, True)]


def operands(shape, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """older, newer, w_older, w_newer and the gradients of both results."""
    n, older, newer, h, w, out, reduced = shape
    rng = torch.Generator().manual_seed(seed)
    size = (n, older, 2 * h, 2 * w) if reduced else (n, older, h, w)
    tensors = [
        torch.randn(s, generator=rng).to("cuda", dtype) for s in (size, (n, newer, h, w), (n, out, h, w), (n, out, h, w))
    ]
    weights = [torch.randn(out, c, generator=rng).cuda() * c**-0.5 for c in (older, newer)]
    return [*tensors[:2], *weights, *tensors[2:]]


def outcome(function, tensors: list[Tensor], reduced: bool) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors[:4]]
    results = function(*leaves, reduced)
    return [*(y.detach() for y in results), *torch.autograd.grad(results, leaves, tensors[4:])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", COVERED + OTHER, ids=str)
def test_against_float64(shape, dtype):
    tensors, reduced = operands(shape, dtype), shape[-1]
    assert _covers(*tensors[:4], reduced) == (shape in COVERED)
    wanted = outcome(preprocess_reference, [t.double() for t in tensors], reduced)
    plain = outcome(preprocess_reference, tensors, reduced)
    found, again = (outcome(preprocess, tensors, reduced) for _ in range(2))
    names = ("first", "second", "older", "newer", "w_older", "w_newer")
    for name, a, b, p, bits in zip(names, found, wanted, plain, again, strict=True):
        error, allowed = (float((t.double() - b).norm() / b.norm()) for t in (a, p))
        assert error <= max(3e-6, 2 * allowed), name
        assert torch.equal(a, bits), name


def test_one_result_alone():
    tensors = operands(COVERED[3], torch.float32)
    leaves = [t.detach().requires_grad_() for t in tensors[:4]]
    found = torch.autograd.grad(preprocess(*leaves, True)[0], leaves, tensors[4], allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(
        preprocess_reference(*leaves, True)[0], leaves, tensors[4], allow_unused=True, materialize_grads=True
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduced", [False, True])
def test_cuda_graph(reduced):
    shape = COVERED[3] if reduced else COVERED[1]
    tensors = [t.requires_grad_(i < 4) for i, t in enumerate(operands(shape, torch.float32))]

    def step() -> list[Tensor]:
        results = preprocess(*tensors[:4], reduced)
        return [*results, *torch.autograd.grad(results, tensors[:4], tensors[4:])]

    for a, b in zip(replayed(step, tensors, operands(shape, torch.float32, seed=5)), step(), strict=True):
        assert torch.equal(a, b)


def test_opcheck():
    tensors = operands(COVERED[3], torch.float32)
    leaves = [t.requires_grad_() for t in tensors[:4]]
    torch.library.opcheck(_forward_op, (*leaves, True))
    torch.library.opcheck(pixel_grids_op, (leaves[0],))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 5, 2, 16), (1, 1, 6, 48), (2, 3, 5, 7), (1, 2, 4, 8)], ids=str)
def test_pixel_grids(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("cuda", dtype).requires_grad_()
    shifted = torch.empty(x.numel() + 1, dtype=dtype, device="cuda")[1:].view_as(x).copy_(x.detach()).requires_grad_()
    wanted = pixel_grids_reference(x)
    dy = torch.randn_like(wanted)
    for leaf in (x, shifted):
        found = pixel_grids(leaf)
        assert torch.equal(found, wanted)
        assert torch.equal(torch.autograd.grad(found, leaf, dy)[0], torch.autograd.grad(wanted, x, dy, retain_graph=True)[0])


@pytest.mark.parametrize("reduced", [False, True])
def test_compiles_as_one_graph_for_any_batch(reduced):
    torch.compiler.reset()
    traced = torch.compile(preprocess, backend="aot_eager", fullgraph=True)
    for n in (2, 3, 5):
        tensors = operands((n, 64, 128, 16, 16, 32, reduced), torch.float32)
        for a, b in zip(outcome(traced, tensors, reduced), outcome(preprocess, tensors, reduced), strict=True):
            assert torch.equal(a, b)
