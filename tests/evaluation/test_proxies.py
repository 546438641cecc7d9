"""Zero-cost proxies against independent references: closed forms, loops over pairs, and networks written out in torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.data import Augmentation, SearchData, Split
from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Setting, make_evaluator
from hwnas.evaluation.passes import Passes
from hwnas.evaluation.proxies import grad_norm, jacob_cov, naswot, synflow, zico
from hwnas.ir.arch import Arch
from hwnas.ir.simplify import simplify
from hwnas.lower.cost import cost
from hwnas.lower.torch import to_torch
from hwnas.plugins import known
from hwnas.spaces import make_space

CELL = make_space("nasbench201(input=(3,8,8),classes=3,channels=4,cells=1)")
DENSE = make_space("chain(kind='dense',input=(5,),classes=3,layers=2,widths=(4,6),activations=('relu',))")
CONV = make_space("chain(input=(2,8,8),classes=3,layers=2,widths=(4,),activations=('relu',))")


def batches(dims: tuple[int, ...], count: int = 3, size: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(size, *dims, generator=rng), torch.arange(size) % 3) for _ in range(count)]


def passes(arch: Arch, **arguments) -> Passes:
    return Passes(arch, batches(arch.input.dims, **arguments), seed=1)


def some(space, count: int = 4) -> list[Arch]:
    import random

    rng = random.Random(5)
    return [simplify(space.decode(space.sample(rng))) for _ in range(count)]


def test_naswot_counts_the_units_on_which_two_images_agree():
    """Of a dense network, whose rectifiers' inputs are written out."""
    arch = simplify(DENSE.decode((0, 1, 0, 1, 0, 0)))
    found = passes(arch)
    x = found.batches[0][0]
    weights = {name: torch.from_numpy(value) for name, value in to_torch(arch, seed=1).weights().items()}
    layers = [n for n in arch.nodes if n.name.startswith("layer")]
    codes = []
    for node in layers:
        weight = next(v for k, v in weights.items() if k.startswith(node.name) and v.dim() == 2)
        biases = [v for k, v in weights.items() if k.startswith(node.name) and k.endswith("bias")]
        x = F.linear(x, weight, *biases)
        codes.append(x > 0)
        x = x.relu()
    codes = torch.cat(codes, 1).tolist()
    kernel = np.array([[sum(a == b for a, b in zip(p, q, strict=True)) for q in codes] for p in codes], float)
    sign, expected = np.linalg.slogdet(kernel)
    assert sign > 0
    assert naswot.proxy(found) == pytest.approx(expected, rel=1e-9)


def test_naswot_of_a_network_without_rectifiers_is_the_lowest():
    arch = simplify(CELL.decode((0,) * 6))
    cell = passes(arch)
    assert naswot.proxy(cell) <= naswot.proxy(passes(simplify(CELL.decode((3,) * 6))))
    linear = simplify(
        make_space("chain(kind='dense',input=(5,),classes=3,layers=1,widths=(4,),activations=('tanh',))").decode((0, 0, 0))
    )
    assert naswot.proxy(passes(linear)) < -1e300


def test_synflow_of_a_dense_network_is_the_product_of_positive_matrices():
    """R = 1' |W3| |W2| |W1| 1 without biases at zero; every matrix holds all of R, so the sum is R times their number."""
    arch = simplify(DENSE.decode((0, 1, 0, 1, 0, 0)))
    matrices = [torch.from_numpy(w).double().abs() for w in to_torch(arch, seed=1).weights().values() if w.ndim == 2]
    flow = torch.ones(5, dtype=torch.float64)
    for matrix in matrices:
        flow = matrix @ flow
    assert synflow.proxy(passes(arch)) == pytest.approx(math.log(float(flow.sum()) * len(matrices)), rel=1e-9)


def test_synflow_by_finite_differences():
    """theta dR/dtheta of a convolutional network is the slope of R when one kernel is scaled."""
    for arch in some(CELL, 3):
        network = to_torch(arch, seed=1).double().eval()
        with torch.no_grad():
            for name, value in (*network.named_parameters(), *network.named_buffers()):
                neutral = {"running_mean": 0.0, "running_var": 1.0 - 1e-5}
                leaf = name.rsplit(".", 1)[-1]
                if leaf in neutral:
                    value.fill_(neutral[leaf])  # batch norm becomes the identity, since its scale is one
                else:
                    value.abs_()
        kernels = [p for p in network.parameters() if p.dim() > 1]
        ones = torch.ones(1, *arch.input.dims, dtype=torch.float64)
        total = 0.0
        for kernel in kernels:
            sides = []
            for factor in (1.001, 0.999):
                with torch.no_grad():
                    kept = kernel.clone()
                    kernel *= factor
                    sides.append(float(network(ones).sum()))
                    kernel.copy_(kept)
            total += (sides[0] - sides[1]) / 0.002
        assert synflow.proxy(passes(arch)) == pytest.approx(math.log(total), rel=1e-5)


def test_jacobian_covariance_with_numpy():
    for arch in some(CONV, 3):
        found = passes(arch)
        network = to_torch(arch, seed=1).train()
        x = found.batches[0][0].clone().requires_grad_()
        network(x).backward(torch.ones(len(x), 3))
        correlations = np.corrcoef(x.grad.flatten(1).double().numpy())
        values = np.linalg.eigvalsh(correlations).clip(0)
        expected = -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))
        assert jacob_cov.proxy(found) == pytest.approx(expected, rel=1e-2)  # 1 / (v + k) magnifies rounding of v near zero


def gradients(arch: Arch, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    network = to_torch(arch, seed=1).train()
    F.cross_entropy(network(batch[0]), batch[1]).backward()
    return {n: p.grad.double() for n, p in network.named_parameters() if p.dim() > 1 and p.grad is not None}


def test_gradient_norm_and_zico_written_out():
    for arch in some(CELL, 3):
        found = passes(arch)
        rows = [gradients(arch, batch) for batch in found.batches]
        assert grad_norm.proxy(found) == pytest.approx(sum(float(g.norm()) for g in rows[0].values()), rel=1e-5)
        expected = 0.0
        for name in rows[0]:
            sizes = np.stack([row[name].abs().numpy() for row in rows])
            spread = sizes.std(0)
            ratio = (sizes.mean(0)[spread > 0] / spread[spread > 0]).sum()
            expected += np.log(ratio) if ratio > 0 else 0.0
        assert zico.proxy(found) == pytest.approx(expected, rel=1e-4)


def test_passes_are_shared_and_made_once(monkeypatch):
    made = []
    monkeypatch.setattr("hwnas.evaluation.passes.to_torch", lambda *a, **k: made.append(1) or to_torch(*a, **k))
    data = SearchData(
        *(Split(np.random.default_rng(s).standard_normal((12, 3, 8, 8)).astype(np.float32), np.arange(12) % 3) for s in (0, 1))
    )
    names = known("hwnas.evaluation.proxies")
    assert names == ["grad_norm", "jacob_cov", "macs", "naswot", "params", "synflow", "zico"]
    evaluator = make_evaluator(f"zero_cost(proxies={names},batch_size=4)", Setting(CELL, data, Augmentation(False, 0)))
    found = evaluator.evaluate((3, 2, 3, 1, 4, 3))
    assert list(found) == names
    assert all(math.isfinite(v) for v in found.values())
    assert len(made) == 3  # the first batch, the second for ZiCo, and the synaptic flow
    assert found == evaluator.evaluate((3, 2, 3, 1, 4, 3))
    arch = CELL.decode((3, 2, 3, 1, 4, 3))
    assert (found["params"], found["macs"]) == (cost(arch).params, cost(arch).macs)


@pytest.mark.parametrize("text", ["zero_cost(proxies=())", "zero_cost(proxies='naswot')", "zero_cost(proxies=('nothing',))",
                                  "zero_cost(batches=1)", "zero_cost(batch_size=100)", "zero_cost(speed=2)"])  # fmt: skip
def test_what_does_not_fit_is_refused(text):
    data = SearchData(*(Split(np.zeros((12, 3, 8, 8), np.float32), np.arange(12) % 3) for _ in (0, 1)))
    with pytest.raises(UserError):
        make_evaluator(text, Setting(CELL, data, Augmentation(False, 0)))


def test_a_module_that_is_no_evaluator_is_refused():
    data = SearchData(*(Split(np.zeros((12, 3, 8, 8), np.float32), np.arange(12) % 3) for _ in (0, 1)))
    with pytest.raises(UserError):
        make_evaluator("nothing", Setting(CELL, data, Augmentation(False, 0)))
