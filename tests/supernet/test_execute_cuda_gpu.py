"""Merged programs on a GPU against PyTorch's operators there, in double precision."""

from __future__ import annotations

import random

import pytest
import torch

from hwnas.ir.simplify import simplify
from hwnas.spaces import make_space
from hwnas.supernet.execute import TorchExecution
from hwnas.supernet.execute_cuda import CudaExecution, Views, covers
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet

pytestmark = pytest.mark.gpu

SPACES = (
    "mobilenet(input=(3,16,16),classes=5,width=0.25,se=True,act='hardswish',head=24,stages=((24,3,2),(32,2,2)),expansions=(1,3))",
    "mobilenet(input=(1,9,7),classes=70,stages=((40,2,2),(96,2,1)),head=136,depths=(1,2))",
    "nasbench201(input=(3,32,32))",
    "nasbench201(input=(2,7,9),classes=3,channels=2,cells=2)",
    "darts(input=(3,32,32),cells=3,affine=True)",
    "chain(classes=5)",
    "chain(input=(3,4,4),kind='dense')",
)


@pytest.mark.parametrize("text", SPACES)
def test_logits_are_those_of_float64_however_much_memory_there_is(text):
    space = make_space(text)
    supernet, rng, noise = Supernet(space), random.Random(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.4 * torch.rand(parameter.shape, generator=noise) - 0.2)
    supernet = supernet.to("cuda")
    device = torch.device("cuda")

    def weights(weight):
        return supernet.view(weight.bank, weight.shape).detach()

    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(4)])
    assert covers(program)
    batches = [torch.randn(40, *space.input.dims, generator=noise).to(device) for _ in range(3)]
    images = torch.randn(77, *space.input.dims, generator=noise).to(device)
    with torch.inference_mode():
        exact = TorchExecution(program, lambda weight: weights(weight).double())
        exact.recalibrate([batch.double() for batch in batches], 1 << 34)
        expected = exact.logits(images.double(), 1 << 34)

        def error(found, which=slice(None)):
            return float((found - expected[which]).abs().max() / expected.abs().max())

        native = CudaExecution(program, Views(weights), device)
        native.recalibrate(batches, 1 << 34)
        found = native.logits(images, 1 << 34)
        assert error(found) < 1e-5
        assert error(native.logits(images, 20 * native.plan.peak_bytes)) < 1e-5
        assert error(native.logits(images, 1 << 34, [1, 3]), [1, 3]) < 1e-5
        native.recalibrate(batches, 1 << 34)
        assert torch.equal(native.logits(images, 1 << 34), found)  # the same bits again
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        alone = CudaExecution(program.part([0]), Views(weights), device)
        alone.recalibrate(batches, alone.memory(40))
        spare = 1 << 20  # tables and copies of the images
        assert torch.cuda.max_memory_allocated() - before <= 1.1 * alone.memory(40) + spare
        assert error(alone.logits(images, alone.memory(40)), [0]) < 1e-5
