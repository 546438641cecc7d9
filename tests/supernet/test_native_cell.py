"""The native mixed cell inside the supernet computes what the plain mixed ops compute."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.ir.arch import Node
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.classifier import Classifier
from hwnas.ops.concat import Concat
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sum import Sum
from hwnas.space import Choice, Slot, Space
from hwnas.spaces import make_space
from hwnas.spaces.darts import edge_ops as darts_ops
from hwnas.spaces.nasbench201 import edge_ops as nb201_ops
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
    for i, cell in enumerate(cells.values()):
        assert cell.preprocess is not None
        assert {f"cell{i}.s0", f"cell{i}.s1"} <= cell.inside
    for other in ("nasbench201", "chain", "mobilenet", "darts(affine=True)"):
        assert find_mixed_cells(make_space(other)) == {}


def test_every_cell_of_nasbench201_is_found_and_no_other_space_has_one():
    cells = find_nb201_cells(make_space("nasbench201(cells=2, affine=False)"))
    assert list(cells) == [f"stage{s}.cell{i}.n3" for s in range(3) for i in range(2)]
    assert [cell.channels for cell in cells.values()] == [16, 16, 32, 32, 64, 64]
    assert {cell.count for cell in cells.values()} == {4}
    for other in ("nasbench201", "chain", "mobilenet", "darts"):
        assert find_nb201_cells(make_space(other)) == {}


def custom(nodes: list, choices: int) -> Space:
    """A space of these nodes under a classifier; its choices are c0, c1, ..."""
    options = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    darts = tuple(map(str, range(8)))
    names = darts if any(len(n.options) == 8 for n in nodes if isinstance(n, Slot)) else options
    head = Node("head", Classifier(2), (nodes[-1].name,))
    return Space("custom", TensorSpec((4, 6, 6)), tuple(Choice(f"c{i}", names) for i in range(choices)), (*nodes, head), "head")


def test_what_only_looks_like_a_cell_is_left_to_the_plain_ops():
    nb201, darts = nb201_ops(4, affine=False), darts_ops(4, 1, affine=False)
    relu = Node("fixed", ReluConvBn(4, 1), ("x",))
    for nodes in (
        [Slot("a", ("c0",), nb201, ("x",)), Slot("b", ("c1",), nb201, ("x",)), Node("s", Sum(), ("a", "b"))],
        [relu, Slot("a", ("c0",), nb201, ("fixed",)), Node("s", Sum(), ("a", "fixed"))],
        [Slot("a", ("c0",), darts, ("x",)), Node("s", Sum(), ("a", "x")), Node("out", Concat(), ("s",))],
        [relu, Slot("a", ("c0",), darts, ("fixed",)), Node("s", Sum(), ("a", "fixed")), Node("out", Concat(), ("s",))],
        [relu, Node("s", Sum(), ("fixed", "x")), Node("out", Concat(), ("s",)), Slot("a", ("c0",), darts, ("out",))],
    ):
        space = custom(nodes, choices=sum(isinstance(n, Slot) for n in nodes))
        assert find_mixed_cells(space) == find_nb201_cells(space) == {}
        net = Supernet(space)
        assert net(torch.randn(3, 4, 6, 6), [g.float() for g in mixed_gates(net, seed=0)]).shape == (3, 2)


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
