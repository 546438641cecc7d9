"""The DARTS supernet on a GPU, whose cells and preprocess blocks run natively, against plain mixed ops in double precision."""

from __future__ import annotations

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
    space = make_space(f"darts(channels=16,cells=4,input=(3,{size},{size}))")
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, size, size, generator=noise).cuda()
    gates = [torch.randn(len(c.options), generator=noise).softmax(0).cuda() for c in space.choices]
    native, plain, exact = (Supernet(space, 3, native=n).cuda() for n in (True, False, False))
    with torch.backends.cudnn.flags(allow_tf32=False):  # in the stem too
        ours, stock = step(native, x, gates), step(plain, x, gates)
    expected = step(exact.double(), x.double(), [g.double() for g in gates])
    shared = [name for name in expected if name in ours]  # the cells' own weights are packed
    assert {"output", "gates"} < set(shared)
    for names in (["output"], ["gates"], shared[2:]):
        assert norm(ours, expected, names) <= max(3 * norm(stock, expected, names), 1e-4)
