from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwnas.kernels.gated_depthwise import blended_kernel, gated_depthwise, gated_depthwise_reference


def operands(n: int, c: int, h: int, w: int, kernels: list[int], seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64).requires_grad_()

    return normal(n, c, h, w), [normal(c, 1, k, k) for k in kernels], normal(len(kernels))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    kernels=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=1, max_size=4), stride=st.integers(1, 3),
)  # fmt: skip
def test_result_and_gradients(size: tuple[int, int, int, int], kernels: list[int], stride: int) -> None:
    x, weights, gates = operands(*size, kernels)
    wanted = gated_depthwise_reference(x, weights, gates, stride)
    found = gated_depthwise(x, weights, gates, stride)
    torch.testing.assert_close(found, wanted)
    dy = torch.randn_like(wanted)
    leaves = [x, *weights, gates]
    for a, b in zip(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(wanted, leaves, dy), strict=True):
        torch.testing.assert_close(a, b)


def test_one_hot_gates_give_the_chosen_kernel_alone() -> None:
    x, weights, _ = operands(2, 4, 6, 7, [3, 5, 7])
    y = gated_depthwise(x, weights, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weights[1], padding=2, groups=4))


def test_float32_and_channels_last() -> None:
    x, weights, gates = operands(2, 16, 9, 8, [3, 5, 7])
    wanted = gated_depthwise_reference(x, weights, gates)
    low = x.detach().float().contiguous(memory_format=torch.channels_last)
    found = gated_depthwise(low, [w.detach().float() for w in weights], gates.detach().float())
    assert float((found.double() - wanted).detach().norm() / wanted.detach().norm()) < 1e-6


def test_kernel_is_as_large_as_the_largest() -> None:
    _, weights, gates = operands(1, 3, 1, 1, [3, 7])
    kernel = blended_kernel(weights, gates)
    assert kernel.shape == (3, 1, 7, 7)
    torch.testing.assert_close(kernel[:, :, 0], gates[1] * weights[1][:, :, 0])


@pytest.mark.parametrize(("change", "message"), [
    (lambda x, w, g: (x, [], g), "at least one kernel"),
    (lambda x, w, g: (x[0], w, g), r"needs x\[N, C, H, W\]"),
    (lambda x, w, g: (x, [w[0][:, :, :2, :2], w[1]], g), "odd k"),
    (lambda x, w, g: (x, [w[0][:2], w[1]], g), r"kernels \[4, 1, k, k\]"),
    (lambda x, w, g: (x, w, g[:1]), r"gates\[2\]"),
])  # fmt: skip
def test_errors(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_depthwise(*change(*operands(1, 4, 5, 5, [3, 5])))


def test_stride_must_be_positive() -> None:
    with pytest.raises(ValueError, match="stride of at least 1, got 0"):
        gated_depthwise(*operands(1, 4, 5, 5, [3]), stride=0)
