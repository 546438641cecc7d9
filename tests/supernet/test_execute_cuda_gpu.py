"""Merged programs on a GPU against PyTorch's operators there, in double precision."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from uneven import uneven

from hwnas.ir.prims import Pool
from hwnas.ir.simplify import simplify
from hwnas.spaces import make_space
from hwnas.supernet.execute import TorchExecution
from hwnas.supernet.execute_cuda import CudaExecution, Room
from hwnas.supernet.forms import Forms
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet

pytestmark = pytest.mark.gpu

SPACES = (
    "mobilenet(input=(3,16,16),classes=5,width=0.25,se=True,act='hardswish',head=24,stages=((24,3,2),(32,2,2)),expansions=(1,3))",
    "mobilenet(input=(1,9,7),classes=70,stages=((40,2,2),(96,2,1)),head=136,depths=(1,2))",
    "nasbench201(input=(3,32,32))",
    "nasbench201(input=(2,7,9),classes=3,channels=2,cells=2)",
    "nasbench201(input=(3,8,72),channels=64,cells=1,classes=3)",
    "mobilenet(input=(3,20,18),classes=5,stages=((40,2,2),(70,2,1)),act='hardswish',head=24)",
    "nasbench201(input=(3,16,24),channels=24,cells=1)",
    "darts(input=(3,32,32),cells=3,affine=True)",
    "chain(classes=5)",
    "chain(input=(3,4,4),kind='dense')",
)


DEVICE = torch.device("cuda")
PLENTY = 1 << 34


def prepared(text, candidates, scale=1.0):
    """A merged program, its weights, batches to recalibrate on and images."""
    space = make_space(text)
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)
    supernet = uneven(Supernet(space), noise).to(DEVICE)
    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(candidates)])
    batches = [scale * torch.randn(40, *space.input.dims, generator=noise).to(DEVICE) for _ in range(3)]
    images = scale * torch.randn(77, *space.input.dims, generator=noise).to(DEVICE)
    return program, lambda weight: supernet.view(weight.bank, weight.shape).detach(), batches, images


def exact_logits(program, weights, batches, images):
    exact = TorchExecution(program, lambda weight: weights(weight).double())
    exact.recalibrate([batch.double() for batch in batches], PLENTY)
    return exact.logits(images.double(), PLENTY)


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("text", SPACES)
@torch.inference_mode()
def test_logits_are_those_of_float64_however_much_memory_there_is(text):
    program, weights, batches, images = prepared(text, 4)
    expected = exact_logits(program, weights, batches, images)
    forms = Forms(weights, DEVICE)
    assert forms.covers(program)
    native = CudaExecution(program, forms, Room(DEVICE))
    native.recalibrate(batches, PLENTY)
    found = native.logits(images, PLENTY)
    assert error(found, expected) < 1e-5
    assert error(native.logits(images, 20 * native.memory(1)), expected) < 1e-5
    assert error(native.logits(images, PLENTY, [1, 3]), expected[[1, 3]]) < 1e-5
    native.recalibrate(batches, PLENTY)
    assert torch.equal(native.logits(images, PLENTY), found)  # the same bits again
    native.recalibrate(batches, native.memory(40))  # a batch at a time
    assert error(native.logits(images, PLENTY), expected) < 1e-5


@torch.inference_mode()
def test_sums_average_over_windows_of_any_size():
    program, weights, batches, images = prepared("nasbench201(input=(3,12,40),channels=24,cells=1)", 6)
    rng, three = random.Random(0), Pool("avg", 3, 1, 1)
    pools = [Pool("avg", k, 1, k // 2) for k in (3, 5, 7)]
    values = tuple(v._replace(prim=rng.choice(pools)) if v.prim == three else v for v in program.values)
    program = replace(program, values=values)
    assert {v.prim for v in values} >= set(pools)
    native = CudaExecution(program, Forms(weights, DEVICE), Room(DEVICE))
    native.recalibrate(batches, PLENTY)
    assert error(native.logits(images, PLENTY), exact_logits(program, weights, batches, images)) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize(
    "text", ["mobilenet(input=(3,9,8),classes=5,stages=((24,2,1),),head=24)", "chain(input=(3,8,8),classes=5)"]
)
@torch.inference_mode()
def test_values_outside_the_range_of_float16_are_as_exact(text, scale):
    program, weights, batches, images = prepared(text, 3, scale)
    expected = exact_logits(program, weights, batches, images)
    native = CudaExecution(program, Forms(weights, DEVICE), Room(DEVICE))
    native.recalibrate(batches, PLENTY)
    assert error(native.logits(images, PLENTY), expected) < 1e-5


@pytest.mark.parametrize("text", SPACES)
@torch.inference_mode()
def test_activations_keep_within_the_limit(text):
    program, weights, batches, images = prepared(text, 1)
    native = CudaExecution(program, Forms(weights, DEVICE), Room(DEVICE))
    _ = native.scoring  # which packs weights, that are no activations
    limit = native.memory(40)
    spare = 1 << 20  # tables and copies of the images
    for run in (lambda: native.recalibrate(batches, limit), lambda: native.logits(images, limit)):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        assert torch.cuda.max_memory_allocated() - before <= limit + spare
