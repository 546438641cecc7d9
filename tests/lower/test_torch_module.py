"""to_torch against networks written in plain torch.nn, and its weights."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.ir.simplify import simplify
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import init_weights
from hwnas.ops import read_arch
from hwnas.spaces import make_space


def agree(text: str, module: nn.Module, names: dict[str, str], random_weights, dims: tuple[int, ...]) -> None:
    """`names`: IR weight prefix -> name of the layer in `module`."""
    arch = read_arch(text)
    weights = random_weights(arch)
    layers = dict(module.named_modules())
    for name, value in weights.items():
        prefix, leaf = name.rsplit(".", 1)
        getattr(layers[names[prefix]], leaf).data.copy_(torch.from_numpy(value))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *dims)))
    ours = to_torch(arch, weights).double()
    module = module.double()
    for training in (False, True):
        with torch.no_grad():
            expected, found = module.train(training)(x), ours.train(training)(x)
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    for prefix, layer in names.items():  # after a step of training the running statistics agree too
        if isinstance(layers[layer], nn.BatchNorm2d):
            assert torch.allclose(ours.state_dict()[f"{prefix}.running_mean"], layers[layer].running_mean, rtol=1e-12, atol=0)
            assert torch.allclose(ours.state_dict()[f"{prefix}.running_var"], layers[layer].running_var, rtol=1e-12, atol=0)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, mid: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(c, mid, 1), nn.Conv2d(mid, c, 1)

    def forward(self, x):
        s = self.squeeze(nn.functional.adaptive_avg_pool2d(x, 1)).relu()
        return x * nn.functional.hardsigmoid(self.excite(s))


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.body(x)


def test_mbconv(random_weights):
    module = Residual(
        nn.Conv2d(4, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        SqueezeExcite(12, 8),
        nn.Conv2d(12, 4, 1, bias=False),
        nn.BatchNorm2d(4),
    )
    names = {
        "a.expand": "body.0",
        "a.expand_bn": "body.1",
        "a.dw": "body.3",
        "a.dw_bn": "body.4",
        "a.project": "body.7",
        "a.project_bn": "body.8",
    }
    names |= {"a.squeeze": "body.6.squeeze", "a.excite": "body.6.excite"}
    agree(
        "x = input(4, 7, 6)\na = mbconv(x, out=4, kernel=5, expand=3, se=True, act='hardswish')\noutput(a)\n",
        module,
        names,
        random_weights,
        (4, 7, 6),
    )


def test_factorized_reduce(random_weights):
    """As in the DARTS code: the second convolution sees the image without its first row and column."""

    class Reduce(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.even, self.odd, self.bn = (
                nn.Conv2d(3, 2, 1, 2, bias=False),
                nn.Conv2d(3, 3, 1, 2, bias=False),
                nn.BatchNorm2d(5),
            )

        def forward(self, x):
            x = x.relu()
            return self.bn(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], 1))

    agree(
        "x = input(3, 8, 6)\na = factorized_reduce(x, out=5)\noutput(a)\n",
        Reduce(),
        {"a.even": "even", "a.odd": "odd", "a.bn": "bn"},
        random_weights,
        (3, 8, 6),
    )


def test_nasbench201_reduction(random_weights):
    """ResNetBasicblock of the NAS-Bench-201 code."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
            self.b = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6))
            self.down = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(3, 6, 1, bias=False))

        def forward(self, x):
            return self.down(x) + self.b(self.a(x))

    names = {"a.conv1": "a.1", "a.bn1": "a.2", "a.conv2": "b.1", "a.bn2": "b.2", "a.shortcut": "down.1"}
    agree("x = input(3, 8, 6)\na = residual_block(x, out=6)\noutput(a)\n", Block(), names, random_weights, (3, 8, 6))


def test_sep_conv_and_pools(random_weights):
    relu = nn.ReLU
    module = nn.Sequential(
        relu(),
        nn.Conv2d(3, 3, 3, 2, 1, groups=3, bias=False),
        nn.Conv2d(3, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        relu(),
        nn.Conv2d(3, 3, 3, 1, 1, groups=3, bias=False),
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.MaxPool2d(3, 2, 1),
        nn.BatchNorm2d(4),
        relu(),
        nn.Conv2d(4, 4, 5, 1, 4, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 2, 1, bias=False),
        nn.BatchNorm2d(2),
    )
    names = {
        "a.dw1": "1",
        "a.pw1": "2",
        "a.bn1": "3",
        "a.dw2": "5",
        "a.pw2": "6",
        "a.bn2": "7",
        "c.bn": "10",
        "d.dw": "12",
        "d.pw": "13",
        "d.bn": "14",
    }
    text = (
        "x = input(3, 9, 11)\na = sep_conv(x, out=4, kernel=3, stride=2)\nb = pool(a, kind='avg')\n"
        "c = pool_bn(b, kind='max', stride=2)\n"
        "d = dil_conv(c, out=2, kernel=5)\noutput(d)\n"
    )
    agree(text, module, names, random_weights, (3, 9, 11))


def test_initial_weights_depend_on_name_and_seed_only():
    one = read_arch("x = input(3, 8, 8)\na = conv_bn(x, out=4)\nb = conv_bn(a, out=4)\noutput(b)\n")
    two = read_arch("x = input(3, 8, 8)\na = conv_bn(x, out=4)\nc = conv_bn(a, out=2)\noutput(c)\n")
    first, second = init_weights(one, 3), init_weights(two, 3)
    assert np.array_equal(first["a.conv.weight"], second["a.conv.weight"])
    assert not np.array_equal(first["a.conv.weight"], init_weights(one, 4)["a.conv.weight"])
    assert not np.array_equal(first["b.conv.weight"][:, :3], first["a.conv.weight"])


def test_initial_weights_keep_the_variance():
    """Kaiming: standard deviation (2 / fan_in)^(1/2); within five standard errors of the sample's deviation."""
    arch = read_arch("x = input(16, 8, 8)\na = conv_bn(x, out=64)\nb = classifier(a, classes=300)\noutput(b)\n")
    weights = init_weights(arch)
    for name, fan_in in (("a.conv.weight", 144), ("b.linear.weight", 64)):
        value = weights[name]
        expected = (2 / fan_in) ** 0.5
        assert abs(value.std() / expected - 1) <= 5 / (2 * value.size) ** 0.5
        assert abs(value.mean()) <= 5 * expected / value.size**0.5
    assert not weights["b.linear.bias"].any()
    assert (weights["a.bn.running_var"] == 1).all()


def test_weights_go_out_and_in_again():
    space = make_space("nasbench201(channels=2, cells=1, input=(3, 8, 8))")
    arch = space.decode((3, 2, 1, 4, 0, 3))
    module = to_torch(arch, seed=5)
    x = torch.randn(4, 3, 8, 8)
    module.train()(x)  # moves the running statistics
    copy = to_torch(arch, module.weights())
    with torch.no_grad():
        assert torch.equal(module.eval()(x), copy.eval()(x))
    weights = module.weights()
    next(iter(weights.values()))[:] = 99
    assert not any((w == 99).all() for w in module.weights().values())  # they are copies


@pytest.mark.parametrize(
    "text", ["mobilenet(input=(3,8,8),classes=3,stages=((8,2,2),),se=True)", "darts(input=(1,8,8),channels=4,cells=3)"]
)
def test_torch_compile_takes_it_as_one_graph(text):
    space = make_space(text)
    network = to_torch(simplify(space.decode(space.sample(random.Random(0)))))
    x = torch.randn(2, *space.input.dims, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    traced = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for training in (False, True):
            network.train(training)
            assert torch.equal(traced(x), network(x))
