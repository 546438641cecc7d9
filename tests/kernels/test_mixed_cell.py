"""The mixed cell: its reference against modules as DARTS codes write them, its kernel against that in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.stock_darts import MixedCell, pack
from hwnas.kernels.mixed_cell import (
    CONVS,
    DW_PER_CHANNEL,
    OPS,
    _backward_op,
    _forward_op,
    edges,
    mixed_cell,
    mixed_cell_reference,
    reduced_edges,
)

ISAS = ("avx512", "avx2", "baseline")


def operands(
    n: int, c: int, h: int, w: int, nodes: int, reduction: bool, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """s0, s1, gates, dw, pw, fr with weights of the size that keeps activations near 1."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=rng, dtype=torch.float64) * scale).to(dtype)

    e, r = edges(nodes), reduced_edges(nodes, reduction)
    gates = normal(e, len(OPS)).softmax(-1)
    dw = torch.cat([normal(e, k * k * c, scale=1 / k) for k, _ in CONVS], 1)
    pw, fr = normal(e, len(CONVS), c, c, scale=c**-0.5), normal(r, c, c, scale=c**-0.5)
    return [normal(n, c, h, w), normal(n, c, h, w), gates, dw, pw, fr]


def gradients(function, tensors: list[Tensor], nodes: int, reduction: bool, seed: int = 1) -> list[Tensor]:
    """The result and the gradient of every operand, for a random gradient of the result."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    y = function(*leaves, nodes, reduction)
    rng = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy, allow_unused=True, materialize_grads=True)]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    names = ("y", "ds0", "ds1", "dgates", "ddw", "dpw", "dfr")
    for name, a, b in zip(names, found, wanted, strict=True):
        assert a.shape == b.shape, name
        if b.numel():
            error = float((a.double() - b).norm() / b.norm().clamp_min(1e-3))
            assert error <= tolerance, f"{name}: relative error {error:.2e} over {tolerance:.0e}"


@pytest.mark.parametrize("reduction", [False, True])
def test_reference_is_the_cell_of_darts(reduction: bool) -> None:
    torch.manual_seed(0)
    cell = MixedCell(4, 2, reduction).double()
    s0, s1, gates = operands(2, 4, 7, 6, 2, reduction)[:3]
    weights = pack(cell)
    wanted_y = cell(s0, s1, gates)
    dy = torch.randn_like(wanted_y)
    wanted_y.backward(dy)
    wanted = pack(cell, lambda weight: weight.grad)
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    y = mixed_cell_reference(s0, s1, gates, leaves["dw"], leaves["pw"], leaves["fr"], 2, reduction)
    y.backward(dy)
    torch.testing.assert_close(y, wanted_y)
    for name, leaf in leaves.items():
        if leaf.numel():
            torch.testing.assert_close(leaf.grad, wanted[name])


def test_constants_of_the_reference_match_the_abi() -> None:
    assert DW_PER_CHANNEL == 102
    assert edges(4) == 14
    assert reduced_edges(4, True) == 8


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("size", [(2, 16, 8, 8), (1, 6, 5, 7), (3, 34, 4, 3), (2, 2, 1, 1)])
def test_native_matches_reference_in_float64(size: tuple[int, int, int, int], reduction: bool) -> None:
    tensors = operands(*size, 3, reduction)
    wanted = gradients(mixed_cell_reference, tensors, 3, reduction)
    assert_near(gradients(mixed_cell, tensors, 3, reduction), wanted, 1e-9)


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("size", [(4, 16, 16, 16), (2, 64, 8, 8), (1, 20, 9, 11)])
def test_native_matches_reference_in_float32(size: tuple[int, int, int, int], reduction: bool) -> None:
    tensors = operands(*size, 4, reduction, torch.float32)
    wanted = gradients(mixed_cell_reference, [t.double() for t in tensors], 4, reduction)
    assert_near(gradients(mixed_cell, tensors, 4, reduction), wanted, 1e-4)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    nodes=st.integers(1, 3), reduction=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(size: tuple[int, int, int, int], nodes: int, reduction: bool, seed: int) -> None:
    n, c, h, w = size
    c += c % 2 if reduction else 0
    tensors = operands(n, c, h, w, nodes, reduction, seed=seed)
    wanted = gradients(mixed_cell_reference, tensors, nodes, reduction)
    assert_near(gradients(mixed_cell, tensors, nodes, reduction), wanted, 1e-7)


@pytest.mark.parametrize(("index", "change", "message"), [
    (0, lambda t: t[:0], "without empty dimensions"),
    (0, lambda t: t[0], r"needs s0\[N, C, H, W\]"),
    (1, lambda t: t.float(), "one shape, dtype and device"),
    (2, lambda t: t[:, :7], r"needs gates\[9, 8\]"),
    (3, lambda t: t[:, :-1], r"needs dw\[9, 408\]"),
    (4, lambda t: t[:, :5], r"needs pw\[9, 6, 4, 4\]"),
    (5, lambda t: t[:1], r"needs fr\[6, 4, 4\]"),
])  # fmt: skip
def test_errors_say_rule_value_and_remedy(index, change, message: str) -> None:
    tensors = operands(1, 4, 3, 3, 3, True)
    tensors[index] = change(tensors[index])
    with pytest.raises(ValueError, match=message) as error:
        mixed_cell(*tensors, 3, True)
    assert "\n" not in str(error.value)
    assert "got" in str(error.value)


def test_odd_channels_in_a_reduction_cell_and_no_nodes() -> None:
    with pytest.raises(ValueError, match="even C in a reduction cell, got C=3"):
        mixed_cell(*operands(1, 3, 3, 3, 2, True), 2, True)
    with pytest.raises(ValueError, match="at least one node, got nodes=0"):
        mixed_cell(*operands(1, 3, 3, 3, 1, False), 0, False)


assert _forward_op
assert _backward_op
