"""The native mixed cell inside the supernet computes what the plain mixed ops compute."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.spaces import make_space
from hwnas.supernet.derive import derive
from hwnas.supernet.mixed_cell import find_mixed_cells
from hwnas.supernet.nb201_cell import find_nb201_cells
from hwnas.supernet.supernet import Supernet

SPACE = "darts(channels=4,cells=3,input=(3,9,8))"
NB201 = "nasbench201(channels=3,cells=1,affine=False,input=(3,9,8))"


def both(space: str = SPACE) -> tuple[Supernet, Supernet]:
    made = make_space(space)
    return Supernet(made, seed=3), Supernet(made, seed=3, native=False)


def mixed_gates(net: Supernet, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(len(c.options), generator=rng, dtype=torch.float64).softmax(0).requires_grad_() for c in net.space.choices
    ]


def test_every_cell_of_darts_is_found_and_no_other_space_has_one():
    cells = find_mixed_cells(make_space("darts(cells=8)"))
    assert list(cells) == [f"cell{i}.out" for i in range(8)]
    assert [cell.reduction for cell in cells.values()] == [i in (2, 5) for i in range(8)]
    assert [cell.channels for cell in cells.values()] == [16, 16, 32, 32, 32, 64, 64, 64]
    for other in ("nasbench201", "chain", "mobilenet", "darts(affine=True)"):
        assert find_mixed_cells(make_space(other)) == {}


def test_every_cell_of_nasbench201_is_found_and_no_other_space_has_one():
    cells = find_nb201_cells(make_space("nasbench201(cells=2, affine=False)"))
    assert list(cells) == [f"stage{s}.cell{i}.n3" for s in range(3) for i in range(2)]
    assert [cell.channels for cell in cells.values()] == [16, 16, 32, 32, 64, 64]
    assert {cell.count for cell in cells.values()} == {4}
    for other in ("nasbench201", "chain", "mobilenet", "darts"):
        assert find_nb201_cells(make_space(other)) == {}


@pytest.mark.parametrize("space", [*(SPACE.replace("cells=3", f"cells={n}") for n in (1, 2, 3)), NB201])
def test_output_and_all_gradients_equal_the_plain_mixed_ops(space):
    native, plain = both(space)
    native.double().train()
    plain.double().train()
    x = torch.randn(3, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for net in (native, plain):
        gates = mixed_gates(net, seed=len(space))
        y = net(x, gates)
        y.square().mean().backward()
        genotype = net.space.sample(random.Random(0))
        results.append((y, torch.stack([g.grad for g in gates]), genotype))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-14)
    # A gradient step of the weights moves both to the same network.
    for net in (native, plain):
        torch.optim.SGD([p for p in net.parameters() if p.grad is not None], lr=1.0).step()
    a, b = derive(native.float(), results[0][2]), derive(plain.float(), results[1][2])
    trained = [name for name in a if "running" not in name]
    assert trained
    for name in trained:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("space", [SPACE, NB201])
def test_a_single_path_uses_the_packed_weights(space):
    native, plain = both(space)
    genotype = native.space.sample(random.Random(5))
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(native.eval()(x, genotype), plain.eval()(x, genotype), rtol=0, atol=0)


@pytest.mark.parametrize("space", [SPACE, NB201])
def test_the_same_weights_whether_packed_or_not(space):
    native, plain = both(space)
    assert sum(p.numel() for p in native.parameters()) == sum(p.numel() for p in plain.parameters())
    for seed in range(3):
        genotype = native.space.sample(random.Random(seed))
        a, b = derive(native, genotype), derive(plain, genotype)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
