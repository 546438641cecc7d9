"""The first native kernel, on the processor and (pytest -m gpu) on an NVIDIA GPU, against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwnas import _native
from hwnas.kernels.weighted_sum import weighted_sum, weighted_sum_reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LOW = [
    ("cpu", torch.float32),
    pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
]
FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "flipped_view": lambda x: torch.cat([x, x])[x.shape[0] :],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # not aligned to a vector
}


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Memory that torch.empty hands out is filled with NaN, so that an element which nobody writes is found."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def make(
    terms: int, shape: tuple[int, ...], device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[Tensor], Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    xs = [torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype) for _ in range(terms)]
    w = torch.randn(terms, generator=g, dtype=torch.float64).to(
        device, torch.float64 if dtype == torch.float64 else torch.float32
    )
    return xs, w, torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype)


def both_ways(
    f: Callable[[list[Tensor], Tensor], Tensor], xs: list[Tensor], w: Tensor, dy: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """y, dL/dx and dL/dw, on leaves that keep the memory layout of what is given."""
    leaves = [x.detach().requires_grad_() for x in xs]
    weights = w.detach().requires_grad_()
    y = f(leaves, weights)
    *dxs, dw = torch.autograd.grad(y, [*leaves, weights], dy)
    return y.detach(), list(dxs), dw


def exact(xs: list[Tensor], w: Tensor, dy: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """The definition in float64, written out; and the sums of absolute values, which bound what rounding can do."""
    x = torch.stack([x.double() for x in xs])
    v, g = w.double(), dy.double()
    weights = v.view(-1, *[1] * (x.dim() - 1))
    terms, products = weights * x, x * g
    flat = products.reshape(len(xs), g.numel())
    return terms.sum(0), list(weights * g), flat.sum(1), terms.abs().sum(0), flat.abs().sum(1)


@pytest.mark.parametrize(("device", "dtype"), LOW)
@pytest.mark.parametrize("terms", [1, 2, 3, 8, 31, 64])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 5, 7), (3, 4097), (2, 16, 33, 32)])
def test_low_precision_stays_within_its_rounding(device, dtype, terms, shape):
    xs, w, dy = make(terms, shape, device, dtype)
    y, dxs, dw = both_ways(weighted_sum, xs, w, dy)
    ye, dxe, dwe, size, dwsize = exact(xs, w, dy)
    eps32 = torch.finfo(torch.float32).eps
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype
    assert dw.dtype == torch.float32
    # gamma_n = n eps of Higham: a sum of n products in float32, and one rounding to the result's type
    assert ((y.double() - ye).abs() <= (terms + 1) * eps32 * size + eps * ye.abs()).all()
    for dx, expected in zip(dxs, dxe, strict=True):
        assert dx.dtype == dtype
        assert ((dx.double() - expected).abs() <= eps * expected.abs() + 1e-40).all()
    # Partial sums of at most 64 products in float32 in any order, added up in higher precision or by a tree.
    assert ((dw.double() - dwe).abs() <= 128 * eps32 * dwsize).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", list(FORMATS))
@pytest.mark.parametrize("terms", [1, 5])
def test_every_layout_in_double(device, layout, terms):
    xs, w, dy = make(terms, (2, 3, 5, 4), device)
    laid = [FORMATS[layout](x) for x in xs]
    assert all(torch.equal(a, b) for a, b in zip(laid, xs, strict=True))
    y, dxs, dw = both_ways(weighted_sum, laid, w, FORMATS[layout](dy))
    ye, dxe, dwe, _, _ = exact(xs, w, dy)
    assert torch.allclose(y, ye, rtol=1e-13, atol=1e-13)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(dxs, dxe, strict=True))
    assert torch.allclose(dw, dwe, rtol=1e-12, atol=1e-12)
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
def test_layouts_may_be_mixed(device):
    xs, w, dy = make(len(FORMATS), (2, 3, 5, 4), device)
    ye, dxe, dwe, _, _ = exact(xs, w, dy)
    for shift in range(len(FORMATS)):
        layouts = list(FORMATS.values())[shift:] + list(FORMATS.values())[:shift]
        laid = [layout(x) for layout, x in zip(layouts, xs, strict=True)]
        y, dxs, dw = both_ways(weighted_sum, laid, w, dy)
        assert torch.allclose(y, ye, rtol=1e-13, atol=1e-13)
        assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(dxs, dxe, strict=True))
        assert torch.allclose(dw, dwe, rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(
    terms=st.integers(1, 64),
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=5).map(tuple),
    seed=st.integers(0, 10**6),
)
def test_any_shape_in_double(terms, shape, seed):
    xs, w, dy = make(terms, shape, seed=seed)
    y, dxs, dw = both_ways(weighted_sum, xs, w, dy)
    ye, dxe, dwe, _, _ = exact(xs, w, dy)
    assert y.shape == shape
    assert torch.allclose(y, ye, rtol=1e-12, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(dxs, dxe, strict=True))
    assert torch.allclose(dw, dwe, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("terms", [1, 2, 7])
def test_gradcheck(device, terms):
    xs, w, _ = make(terms, (2, 2, 3), device)
    leaves = [x.requires_grad_() for x in xs]
    assert torch.autograd.gradcheck(lambda w, *xs: weighted_sum(list(xs), w), (w.requires_grad_(), *leaves))


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_of_one_tensor_used_twice(device):
    (x,), _, _ = make(1, (2, 3), device)
    w = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(lambda x, w: weighted_sum([x, x, x], w), (x.requires_grad_(), w.requires_grad_()))


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_only_some_inputs(device):
    xs, w, dy = make(3, (2, 5), device)
    _, dxe, dwe, _, _ = exact(xs, w, dy)
    xs[1].requires_grad_()
    (dx,) = torch.autograd.grad(weighted_sum(xs, w), [xs[1]], dy)
    assert torch.allclose(dx, dxe[1], rtol=1e-13, atol=1e-13)
    w.requires_grad_()
    (dw,) = torch.autograd.grad(weighted_sum([x.detach() for x in xs], w), [w], dy)
    assert torch.allclose(dw, dwe, rtol=1e-12, atol=1e-12)
    assert not weighted_sum([x.detach() for x in xs], w.detach()).requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_expanded_or_strided(device):
    """sum() hands back a gradient of stride 0; indexing hands back one with gaps."""
    xs, w, _ = make(3, (2, 3, 4, 5), device)
    for loss in (lambda y: y.sum(), lambda y: y[:, 1, ::2].sum(), lambda y: (y.mean((2, 3)) ** 2).sum()):
        found, expected = [], []
        for f, into in ((weighted_sum, found), (weighted_sum_reference, expected)):
            leaves = [x.detach().requires_grad_() for x in xs]
            v = w.detach().requires_grad_()
            into += torch.autograd.grad(loss(f(leaves, v)), [*leaves, v])
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, expected, strict=True))


def test_the_reference_is_the_definition():
    xs, w, _ = make(4, (2, 3))
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            expected[i, j] = sum(float(w[o]) * float(xs[o][i, j]) for o in range(4))
    assert torch.allclose(weighted_sum_reference(xs, w), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 4, 0)])
def test_an_empty_batch(device, shape):
    xs, w, dy = make(3, shape, device, torch.float32)
    y, dxs, dw = both_ways(weighted_sum, xs, w, dy)
    assert y.shape == shape
    assert all(dx.shape == shape for dx in dxs)
    assert torch.equal(dw, torch.zeros_like(w))


@pytest.mark.parametrize("device", DEVICES)
def test_infinities_and_nans_go_where_the_definition_sends_them(device):
    x = torch.tensor([1.0, float("inf"), float("nan"), -float("inf"), 0.0], device=device)
    for values in ([0.0, 1.0], [1.0, 0.0], [1.0, -1.0]):
        w = torch.tensor(values, device=device)
        found, expected = weighted_sum([x, x.flip(0)], w), weighted_sum_reference([x, x.flip(0)], w)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("terms", [63, 64, 65, 100])
def test_more_terms_than_the_kernel_takes(device, terms):
    assert _native.weighted_sum.max_terms == 64
    xs, w, dy = make(terms, (3, 5), device)
    y, dxs, dw = both_ways(weighted_sum, xs, w, dy)
    ye, dxe, dwe, _, _ = exact(xs, w, dy)
    assert torch.allclose(y, ye, rtol=1e-12, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-13) for a, b in zip(dxs, dxe, strict=True))
    assert torch.allclose(dw, dwe, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_that_the_processor_kernel_does_not_take_use_the_reference(dtype):
    xs, w, _ = make(3, (4, 5), "cpu", dtype)
    assert torch.equal(weighted_sum(xs, w), weighted_sum_reference(xs, w))


@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_another_precision_are_converted_and_so_is_their_gradient(device):
    xs, w, dy = make(3, (4, 5), device, torch.float32)
    y, _, dw = both_ways(weighted_sum, xs, w.double(), dy)
    assert dw.dtype == torch.float64
    assert torch.equal(y, weighted_sum(xs, w))
    strided = torch.stack([w, w + 1], 1)[:, 0]
    assert torch.equal(weighted_sum(xs, strided), y)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_bits_every_time(device):
    xs, w, dy = make(8, (4, 16, 31, 33), device, torch.float32)
    first, second = both_ways(weighted_sum, xs, w, dy), both_ways(weighted_sum, xs, w, dy)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert torch.equal(first[2], second[2])


def test_inputs_are_not_written():
    xs, w, dy = make(3, (4, 5), "cpu", torch.float32)
    before = [t.clone() for t in (*xs, w, dy)]
    both_ways(weighted_sum, xs, w, dy)
    assert all(torch.equal(a, b) for a, b in zip((*xs, w, dy), before, strict=True))


@pytest.mark.parametrize(
    ("xs", "w"),
    [
        ([], torch.ones(0)),
        ([torch.ones(2, 3), torch.ones(3, 2)], torch.ones(2)),
        ([torch.ones(2, 3), torch.ones(6)], torch.ones(2)),
        ([torch.ones(2, 3), torch.ones(1, 3)], torch.ones(2)),  # no broadcasting
        ([torch.ones(2, 3), torch.ones(2, 3).double()], torch.ones(2)),
        ([torch.ones(2, 3)] * 2, torch.ones(1)),
        ([torch.ones(2, 3)] * 2, torch.ones(3)),
        ([torch.ones(2, 3)] * 2, torch.ones(2, 1)),
        ([torch.ones(2, 3)], torch.ones(())),
    ],
)
def test_inputs_that_do_not_fit_are_refused(xs, w):
    with pytest.raises(ValueError, match="weighted_sum needs"):
        weighted_sum(xs, w)


@pytest.mark.parametrize(
    ("xs", "w"),
    [
        ([torch.ones(2, 3).half(), torch.ones(1, 3).half()], torch.ones(2)),
        ([torch.ones(2, 3).half()] * 2, torch.ones(3)),
        ([torch.ones(2, 3)] * 65, torch.ones(66)),
        ([torch.ones(2, 3)] * 64 + [torch.ones(1, 3)], torch.ones(65)),
    ],
)
def test_the_fallback_refuses_the_same(xs, w):
    """What the kernel refuses must not be broadcast or left out in silence where the reference stands in for it."""
    with pytest.raises(ValueError, match="weighted_sum needs"):
        weighted_sum(xs, w)


@pytest.mark.gpu
def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="one shape, dtype and device"):
        weighted_sum([torch.ones(2, 3, device="cuda"), torch.ones(2, 3)], torch.ones(2, device="cuda"))
    with pytest.raises(ValueError, match="weighted_sum needs w"):
        weighted_sum([torch.ones(2, 3, device="cuda")], torch.ones(1))


@pytest.mark.gpu
def test_on_a_stream_of_its_own():
    """The kernel runs on the current stream, so what was queued there before is done when it reads."""
    xs, w, _ = make(8, (64, 64, 64), "cuda", torch.float32)
    expected = weighted_sum([x * 2 for x in xs], w)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = weighted_sum([x * 2 for x in xs], w)
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.gpu
def test_larger_than_31_bits():
    x = torch.ones(2**31 + 5, dtype=torch.bfloat16, device="cuda")
    y = weighted_sum([x, x], torch.tensor([1.0, 2.0], device="cuda"))
    assert bool((y == 3).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(device, layout, dtype):
    """Schema, autograd registration, and the fake against the real one: shapes, strides, aliasing."""
    xs, w, dy = make(3, (2, 3, 4, 5), device, dtype)
    laid = [FORMATS[layout](x).detach().requires_grad_() for x in xs]
    torch.library.opcheck(torch.ops.hwnas.weighted_sum.default, (laid, w.requires_grad_()))
    plain = [x.detach() for x in laid]
    torch.library.opcheck(
        torch.ops.hwnas.weighted_sum_backward.default, (dy, plain, w.detach()), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_the_fake_has_the_real_ones_shape_and_strides(layout):
    from torch._subclasses.fake_tensor import FakeTensorMode

    xs, w, _ = make(2, (2, 3, 4, 5), "cpu", torch.float32)
    laid = [FORMATS[layout](x) for x in xs]
    real = weighted_sum(laid, w)
    with FakeTensorMode() as mode:
        fake = weighted_sum([mode.from_tensor(x) for x in laid], mode.from_tensor(w))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_compile_in_one_graph(device):
    """Forward and backward under torch.compile without a break; the aot_eager backend needs no compiler."""
    xs, w, dy = make(4, (2, 3, 4, 5), device)

    def f(xs: list[Tensor], w: Tensor) -> Tensor:
        return weighted_sum([x.relu() for x in xs], w.softmax(0)).tanh()

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for one, two in zip(both_ways(compiled, xs, w, dy), both_ways(f, xs, w, dy), strict=True):
        for a, b in zip(one if isinstance(one, list) else [one], two if isinstance(two, list) else [two], strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
