"""The DARTS supernet on a GPU, whose cells and preprocess blocks run natively, against plain mixed ops in double precision."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import Tensor

from hwnas.spaces import make_space
from hwnas.supernet.supernet import Supernet

pytestmark = pytest.mark.gpu


def step(net: Supernet, x: Tensor, gates: list[Tensor]) -> dict[str, Tensor]:
    """Output and gradients, of gates and of every weight, in double precision."""
    gates = [g.detach().to(x.dtype).requires_grad_() for g in gates]
    y = net.train()(x, gates)
    y.square().mean().backward()
    weights = {name: p.grad for name, p in net.named_parameters()}
    found = {"output": y.detach(), "gates": torch.cat([g.grad for g in gates]), **weights}
    return {name: value.double() for name, value in found.items() if value is not None}


def norm(found: dict[str, Tensor], expected: dict[str, Tensor], names: list[str]) -> float:
    apart = sum(float((found[n] - expected[n]).square().sum()) for n in names)
    return (apart / sum(float(expected[n].square().sum()) for n in names)) ** 0.5


@pytest.mark.parametrize("size", [32, 20])  # tuned kernels, and general ones
def test_a_step_is_that_of_plain_mixed_ops(size):
    """Gradients jump where a maximum or a ReLU takes the other side of a tie, in PyTorch's too: one draw of several counts."""
    outputs, gradients = zip(*(errors(size, seed) for seed in range(5)), strict=True)
    assert max(outputs) < 1e-5
    assert min(gradients) < 1e-5
    assert median(gradients) < 1e-3


def errors(size: int, seed: int) -> tuple[float, float]:
    """Of the output, and of the gradients of gates and weights, the larger, relative to double precision."""
    space = make_space(f"darts(channels=16,cells=4,input=(3,{size},{size}))")
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, size, size, generator=noise).cuda()
    gates = [torch.randn(len(c.options), generator=noise).softmax(0).cuda() for c in space.choices]
    native, exact = (Supernet(space, 3, native=n).cuda() for n in (True, False))
    with torch.backends.cudnn.flags(allow_tf32=False):  # in the stem too
        ours = step(native, x, gates)
    expected = step(exact.double(), x.double(), [g.double() for g in gates])
    shared = [name for name in expected if name in ours]  # the cells' own weights are packed
    assert {"output", "gates"} < set(shared)
    output, *gradients = (norm(ours, expected, names) for names in (["output"], ["gates"], shared[2:]))
    return output, max(gradients)
