"""The preprocess blocks and the pixel grids, against the modules that public DARTS codes use."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.stock_darts import FactorizedReduce, relu_conv_bn
from hwnas.kernels.pixel_grids import pixel_grids
from hwnas.kernels.preprocess import preprocess

sizes = st.integers(1, 7)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, sizes, sizes, sizes, st.integers(1, 4), st.booleans())
def test_against_stock_modules(n, older, newer, h, w, half, reduced):
    n, out = n + 1, 2 * half  # batch norm needs more than one value a channel
    torch.manual_seed(0)
    before = FactorizedReduce(older, out) if reduced else relu_conv_bn(older, out)
    last = relu_conv_bn(newer, out)
    for block in (before, last):
        block.double()
    first_weights = [m.weight for m in before.modules() if isinstance(m, nn.Conv2d)]
    w_newer = last[1].weight  # type: ignore[index]
    x0 = torch.randn(n, older, 2 * h - 1, 2 * w, dtype=torch.float64, requires_grad=True)  # an odd height as well
    x1 = torch.randn(n, newer, h, w, dtype=torch.float64, requires_grad=True)
    wanted = before(x0), last(x1)
    found = preprocess(x0, x1, torch.cat([weight.flatten(1) for weight in first_weights]), w_newer.flatten(1), reduced)
    leaves = [x0, x1, *first_weights, w_newer]
    upstream = [torch.randn_like(y) for y in wanted]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_pixel_grids_are_zero_beyond_the_border():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    even, odd = pixel_grids(x)[0]
    assert even.tolist() == [[1, 3], [7, 9]]
    assert odd.tolist() == [[5, 0], [0, 0]]
