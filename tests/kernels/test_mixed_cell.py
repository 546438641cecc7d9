"""The mixed cell: its reference against modules as DARTS codes write them, its kernel against that in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.stock_darts import MixedCell, pack
from hwnas import _native
from hwnas.kernels import mixed_cell as module
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



@pytest.mark.parametrize("reduction", [False, True])
def test_gradcheck(reduction: bool) -> None:
    tensors = [t.requires_grad_() for t in operands(2, 2, 3, 4, 2, reduction, seed=3)]
    assert torch.autograd.gradcheck(lambda *t: mixed_cell(*t, 2, reduction), tensors, fast_mode=True)


@pytest.mark.parametrize("reduction", [False, True])
def test_opcheck(reduction: bool) -> None:
    tensors = [t.requires_grad_() for t in operands(1, 2, 3, 3, 1, reduction)]
    torch.library.opcheck(_forward_op, (*tensors, 1, reduction))
    tensors = [t.detach() for t in tensors]
    y, saved = _forward_op(*tensors, 1, reduction)
    torch.library.opcheck(_backward_op, (torch.randn_like(y), *tensors, y, saved, 1, reduction))


@pytest.mark.parametrize("reduction", [False, True])
def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(reduction: bool) -> None:
    tensors = operands(2, 4, 5, 7, 2, reduction)
    real = gradients(mixed_cell, tensors, 2, reduction)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in tensors]
        y = mixed_cell(*fakes, 2, reduction)
        fake = [y, *torch.autograd.grad(y, fakes, torch.ones_like(y))]
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in real]


def test_compiles_without_a_graph_break() -> None:
    tensors = operands(2, 4, 5, 5, 2, True)
    compiled = torch.compile(mixed_cell, fullgraph=True, backend="aot_eager")
    assert_near(gradients(compiled, tensors, 2, True), gradients(mixed_cell, tensors, 2, True), 1e-12)


@pytest.mark.parametrize("size", [(2, 16, 5, 6), (2, 6, 5, 6)])
@pytest.mark.parametrize("reduction", [False, True])
def test_all_memory_is_written_before_it_is_read(
    size: tuple[int, int, int, int], reduction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results, saved bytes and scratch start as NaN; nothing of it may be left or have been used."""
    tensors = operands(*size, 3, reduction, torch.float32)
    wanted = gradients(mixed_cell, tensors, 3, reduction)
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(t: Tensor) -> Tensor:
        return t.fill_(255 if t.dtype == torch.uint8 else torch.nan)  # four bytes of 255 are a NaN

    def poisoned_bytes(*args) -> Tensor:
        return poisoned(empty(module._byte_count(*args), dtype=torch.uint8))

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    monkeypatch.setattr(module, "_bytes", poisoned_bytes)
    found = gradients(mixed_cell, tensors, 3, reduction)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", [False, True])
def test_same_bits_in_every_run_and_with_any_number_of_threads(reduction: bool) -> None:
    tensors = operands(3, 16, 7, 6, 4, reduction, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 5):
            torch.set_num_threads(count)
            runs.append(gradients(mixed_cell, tensors, 4, reduction))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that this processor lacks falls back to the baseline, which is then tested once more."""
    monkeypatch.setenv("HWNAS_CPU_ISA", isa)
    tensors = operands(2, 48, 9, 10, 2, True, dtype)
    wanted = gradients(mixed_cell_reference, [t.double() for t in tensors], 2, True)
    assert_near(gradients(mixed_cell, tensors, 2, True), wanted, 1e-4 if dtype == torch.float32 else 1e-9)


def test_layouts_and_non_contiguous_operands() -> None:
    tensors = operands(2, 6, 8, 8, 2, True)
    wanted = gradients(mixed_cell_reference, tensors, 2, True)
    s0 = tensors[0].contiguous(memory_format=torch.channels_last)
    s1 = torch.stack([tensors[1], tensors[1]], -1)[..., 0]
    pw = tensors[4].transpose(2, 3).contiguous().transpose(2, 3)
    assert not s1.is_contiguous()
    assert not pw.is_contiguous()
    assert_near(gradients(mixed_cell, [s0, s1, *tensors[2:4], pw, tensors[5]], 2, True), wanted, 1e-9)


def test_maximum_of_equal_values_is_the_first_as_in_pytorch() -> None:
    tensors = operands(2, 4, 6, 6, 2, False)
    tensors[:2] = [t.round() for t in tensors[:2]]
    wanted = gradients(mixed_cell_reference, tensors, 2, False)
    assert_near(gradients(mixed_cell, tensors, 2, False), wanted, 1e-9)


def test_nan_is_not_swallowed() -> None:
    tensors = operands(2, 4, 6, 6, 2, False)
    tensors[0][1, 2, 3, 3] = torch.nan
    assert mixed_cell(*tensors, 2, False)[:, :4].isnan().any()
    assert mixed_cell_reference(*tensors, 2, False)[:, :4].isnan().any()


def test_kept_memory_is_bounded_by_what_was_in_use_and_can_be_released() -> None:
    _native.memory.release()
    large, small = operands(4, 16, 16, 16, 2, False), operands(1, 16, 4, 4, 2, False)
    gradients(mixed_cell, large, 2, False)
    kept = _native.memory.kept_bytes()
    assert kept > 0
    for _ in range(3):
        gradients(mixed_cell, large, 2, False)
        gradients(mixed_cell, small, 2, False)
    assert _native.memory.kept_bytes() <= kept
    _native.memory.release()
    assert _native.memory.kept_bytes() == 0


def test_bfloat16_on_the_cpu_takes_the_reference() -> None:
    tensors = operands(2, 4, 5, 5, 2, False)
    found = mixed_cell(*(t.bfloat16() for t in tensors[:2]), *tensors[2:], 2, False)
    assert found.dtype == torch.bfloat16
    wanted = mixed_cell_reference(*tensors, 2, False)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 0.05
