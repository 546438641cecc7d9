"""Merged programs on a processor at the sizes that are searched: logits against double precision, memory as Linux counts it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from uneven import uneven

from hwnas.ir.simplify import simplify
from hwnas.spaces import make_space
from hwnas.supernet.execute import TorchExecution
from hwnas.supernet.execute_cpu import CpuExecution, covers
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet

SPACES = {
    "mobilenet": "mobilenet(input=(3,32,32),stages=((16,3,2),(24,3,2),(40,3,1)),stem=8,first=8,head=96,widths=(0.5,0.75,1.0))",
    "nasbench201": "nasbench201(input=(3,32,32))",
    "darts": "darts(input=(3,32,32),cells=8)",
}


def prepared(name: str):
    """The weights of a supernet of which nothing is neutral, four candidates, batches and images."""
    space = make_space(SPACES[name])
    rng, noise = random.Random(0), torch.Generator().manual_seed(0)
    supernet = uneven(Supernet(space), noise)
    archs = [simplify(space.decode(space.sample(rng))) for _ in range(4)]
    batches = [torch.randn(24, *space.input.dims, generator=noise) for _ in range(2)]
    images = torch.randn(37, *space.input.dims, generator=noise)
    return archs, lambda weight: supernet.view(weight.bank, weight.shape).detach(), batches, images


@pytest.mark.parametrize("name", SPACES)
def test_every_candidates_logits_are_those_of_float64(name):
    archs, weights, batches, images = prepared(name)
    program = merge(archs)
    assert covers(program)
    with torch.inference_mode():
        exact = TorchExecution(program, lambda weight: weights(weight).double())
        exact.recalibrate([batch.double() for batch in batches], 1 << 34)
        expected = exact.logits(images.double(), 1 << 34)
        native = CpuExecution(program, weights)
        native.recalibrate(batches, 1 << 34)
        found = native.logits(images, 1 << 34)
        alone = CpuExecution(merge(archs[2:3]), weights)
        alone.recalibrate(batches, alone.memory(24))
        by_itself = alone.logits(images, alone.memory(24))
    error = (found - expected).abs().amax((1, 2)) / expected.abs().amax((1, 2))
    assert error.max() < 1e-5
    assert (by_itself[0] - expected[2]).abs().max() < 1e-5 * expected[2].abs().max()
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # or nothing would be shown


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system tells no peak of memory")
@pytest.mark.parametrize("candidates", [1, 4])
def test_resident_memory_grows_by_what_was_said(candidates):
    """In a fresh process, where nothing has been freed that could be used again."""
    command = [sys.executable, __file__, "nasbench201", str(candidates)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    grown, said, copies = (int(v) / 2**20 for v in found)
    assert said > 100
    assert 0.5 * said < grown < said + copies + 8  # code, tables and logits come on top


def _kib(what: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))


def main() -> None:
    """Prints how many bytes recalibration and validation add at their peak, how many they said they would for activations, and
    how many the images have, which are laid out anew."""
    name, candidates = sys.argv[1:]
    archs, weights, batches, images = prepared(name)
    program = merge(archs[: int(candidates)])
    large, many = batches[0].repeat(20, 1, 1, 1), images.repeat(20, 1, 1, 1)
    with torch.inference_mode():
        for batch, validation in ((batches[0][:2], images[:2]), (large, many)):
            part = CpuExecution(program, weights)
            limit = part.memory(len(batch))
            Path("/proc/self/clear_refs").write_text("5")
            before = _kib("VmRSS")
            part.recalibrate([batch, batch], limit)
            part.logits(validation, limit)
    print((_kib("VmHWM") - before) * 1024, limit, 4 * (large.numel() + many.numel()))


if __name__ == "__main__":
    main()
