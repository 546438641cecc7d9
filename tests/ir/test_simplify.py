"""simplify on networks of no search space, and rule by rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.ir.simplify import placed_ops, simplify
from hwnas.lower.torch import to_torch
from hwnas.ops import read_arch


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_keep_their_function(seed, random_dag, random_weights):
    arch = random_dag(seed)
    simple = simplify(arch)
    assert simplify(simple) == simple
    assert simple.specs[simple.output] == arch.specs[arch.output]
    weights = random_weights(arch, seed)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, *arch.input.dims)))
    kept = {name: weights[name] for name, _ in simple.weights()}
    with torch.no_grad():
        assert torch.equal(to_torch(arch, weights).double().eval()(x), to_torch(simple, kept).double().eval()(x))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = identity(x); b = conv_bn(a, out=2)", "b = conv_bn(x, out=2)"),
        ("a = sum(x); b = conv_bn(a, out=2)", "b = conv_bn(x, out=2)"),
        ("z = zero(x); a = conv_bn(x, out=2); b = sum(z, a, z)", "a = conv_bn(x, out=2)"),
        ("z = zero(x); a = conv_bn(x, out=2); b = sum(z, a, x)", "a = conv_bn(x, out=2); b = sum(a, x)"),
        ("z = zero(x); p = pool(z, kind='avg'); b = sum(p, x); c = conv_bn(b, out=2)", "c = conv_bn(x, out=2)"),
        ("z = zero(x); y = zero(x); s = sum(z, y); b = sum(s, x); c = conv_bn(b, out=2)", "c = conv_bn(x, out=2)"),
        ("z = zero(x); a = relu_conv_bn(z, out=2); b = sum(a, x)", "z = zero(x); a = relu_conv_bn(z, out=2); b = sum(a, x)"),
        ("d = conv_bn(x, out=2); e = conv_bn(d, out=2); b = pool(x, kind='max')", "b = pool(x, kind='max')"),
        ("a = conv_bn(x, out=2); b = sum(a, a)", "a = conv_bn(x, out=2); b = sum(a, a)"),
        ("a = identity(x); b = identity(a)", ""),
    ],
)
def test_rules(before, after):
    def arch(lines: str) -> object:
        nodes = [line.strip() for line in lines.split(";") if line.strip()]
        last = nodes[-1].split(" = ")[0] if nodes else "x"
        return read_arch("\n".join(["x = input(2, 6, 6)", *nodes, f"output({last})"]))

    assert simplify(arch(before)) == arch(after)


def test_placed_ops_are_what_runs():
    arch = read_arch(
        "x = input(2, 6, 6)\ni = identity(x)\na = conv_bn(i, out=4)\nd = conv_bn(i, out=3)\n"
        "b = pool(a, kind='max', stride=2)\noutput(b)\n"
    )
    assert [str(p) for p in placed_ops(arch)] == [
        "conv_bn(out=4) @ float32[2,6,6]",
        "pool(kind='max', stride=2) @ float32[4,6,6]",
    ]
