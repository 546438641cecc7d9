"""The NAS-Bench-201 cell: its reference against modules, its kernel against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwnas.kernels.nb201_cell import OPS, _backward_op, _forward_op, edges, nb201_cell, nb201_cell_reference


def operands(n: int, c: int, h: int, w: int, states: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=rng, dtype=torch.float64) * scale).to(dtype)

    e = edges(states)
    w3 = normal(e, c, c, 3, 3, scale=c**-0.5 / 3)
    return [normal(n, c, h, w), normal(e, len(OPS)).softmax(-1), normal(e, c, c, scale=c**-0.5), w3]


def gradients(function, tensors: list[Tensor], states: int) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, states)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("y", "dx", "dgates", "dw1", "dw3"), found, wanted, strict=True):
        assert a.shape == b.shape
        error = float((a.double() - b).norm() / b.norm().clamp_min(1e-3))
        assert error <= tolerance, f"{name}: relative error {error:.2e} over {tolerance:.0e}"


def test_reference_is_the_supernet_of_modules() -> None:
    x, gates, w1, w3 = operands(2, 4, 5, 6, 4)

    def conv(weight: Tensor, k: int) -> nn.Module:
        layer = nn.Conv2d(4, 4, k, padding=k // 2, bias=False).double()
        layer.weight.data = weight.reshape(4, 4, k, k)
        return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(4, affine=False).double())

    nodes, e = [x], 0
    for _ in range(3):
        node: Tensor | float = 0.0
        for source in nodes:
            ops = [nn.Identity(), conv(w1[e], 1), conv(w3[e], 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]
            node = node + sum(g * op(source) for g, op in zip(gates[e][1:], ops, strict=True))
            e += 1
        nodes.append(node)
    torch.testing.assert_close(nb201_cell_reference(x, gates, w1, w3), nodes[-1])


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    states=st.integers(2, 5),
)  # fmt: skip
def test_any_shape(size: tuple[int, int, int, int], states: int) -> None:
    tensors = operands(*size, states)
    assert_near(gradients(nb201_cell, tensors, states), gradients(nb201_cell_reference, tensors, states), 1e-7)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_float32_on_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_CPU_ISA", isa)
    tensors = operands(4, 16, 16, 16, 4, torch.float32)
    wanted = gradients(nb201_cell_reference, [t.double() for t in tensors], 4)
    assert_near(gradients(nb201_cell, tensors, 4), wanted, 1e-4)


def test_gradcheck_and_opcheck() -> None:
    tensors = [t.requires_grad_() for t in operands(2, 3, 3, 4, 3)]
    assert torch.autograd.gradcheck(lambda *t: nb201_cell(*t, 3), tensors, fast_mode=True)
    torch.library.opcheck(_forward_op, (*tensors, 3))
    tensors = [t.detach() for t in tensors]
    y, saved = _forward_op(*tensors, 3)
    torch.library.opcheck(_backward_op, (torch.randn_like(y), *tensors, saved, 3))


def test_compiles_without_a_graph_break() -> None:
    tensors = operands(2, 4, 5, 5, 4)
    compiled = torch.compile(nb201_cell, fullgraph=True, backend="aot_eager")
    assert_near(gradients(compiled, tensors, 4), gradients(nb201_cell, tensors, 4), 1e-12)


def test_same_bits_in_every_run_and_with_any_number_of_threads() -> None:
    tensors = operands(3, 16, 7, 6, 4, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 5):
            torch.set_num_threads(count)
            runs.append(gradients(nb201_cell, tensors, 4))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            assert torch.equal(a, b)


def test_all_memory_is_written_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwnas.kernels import nb201_cell as module

    tensors = operands(2, 6, 5, 6, 4, torch.float32)
    wanted = gradients(nb201_cell, tensors, 4)
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(t: Tensor) -> Tensor:
        return t.fill_(255 if t.dtype == torch.uint8 else torch.nan)  # four bytes of 255 are a NaN

    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    monkeypatch.setattr(module, "uninitialised_bytes", lambda n, _: poisoned(empty(n, dtype=torch.uint8)))
    for a, b in zip(gradients(nb201_cell, tensors, 4), wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("index", "change", "message"), [
    (0, lambda t: t[:0], "without empty dimensions"),
    (1, lambda t: t[:, :4], r"needs gates\[6, 5\]"),
    (2, lambda t: t[:5], r"needs w1\[6, 4, 4\]"),
    (3, lambda t: t[..., :1], r"needs w3\[6, 4, 4, 3, 3\]"),
])  # fmt: skip
def test_errors(index: int, change, message: str) -> None:
    tensors = operands(1, 4, 3, 3, 4)
    tensors[index] = change(tensors[index])
    with pytest.raises(ValueError, match=message):
        nb201_cell(*tensors, 4)


def test_one_state_is_no_cell() -> None:
    with pytest.raises(ValueError, match="at least two states, got states=1"):
        nb201_cell(*operands(1, 4, 3, 3, 2), 1)
