"""The gradient strategies against what their papers say, on networks small enough to check by hand."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.data import Augmentation, SearchData, Split
from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.kernels.weighted_sum import weighted_sum_reference
from hwnas.lower.cost import op_macs_params
from hwnas.ops.zero import Zero
from hwnas.placements import placed_ops
from hwnas.space import Space
from hwnas.spaces import make_space
from hwnas.supernet.differentiable import CollapseWarning, GradientRecipe, search_differentiable
from hwnas.supernet.expected_latency import ExpectedLatency
from hwnas.supernet.gradient import Alphas, make_gradient, sampled_genotype
from hwnas.supernet.supernet import Supernet

CELL = make_space("nasbench201(input=(3,8,8),classes=3,channels=4,cells=1)")
DARTS = make_space("darts(input=(3,8,8),classes=3,channels=2,cells=1)")
PLAIN = Augmentation(flip=False, shift=0)
SKIP, CONV3 = 1, 3


def alphas_of(space: Space, rows: list[list[float]]) -> Alphas:
    alphas = Alphas(space, 0)
    with torch.no_grad():
        for a, row in zip(alphas.logits, rows, strict=True):
            a.copy_(torch.tensor(row))
    return alphas


def random_alphas(space: Space, seed: int = 0) -> Alphas:
    rng = np.random.default_rng(seed)
    return alphas_of(space, [rng.normal(size=len(c.options)).tolist() for c in space.choices])


def test_second_order_is_the_gradient_through_one_step_of_the_weights(monkeypatch):
    """Against autograd through the step itself, in double precision."""
    space = make_space("chain(kind='dense',input=(5,),classes=3,layers=1,widths=(4,),activations=('tanh','elu'))")
    rng = np.random.default_rng(0)
    train, validation = (Split(rng.standard_normal((6, 5)).astype(np.float32), np.arange(6) % 3) for _ in range(2))
    rate, decay = 0.5, 0.01
    recipe = GradientRecipe(
        epochs=1, batch_size=6, learning_rate=rate, weight_decay=decay, alpha_weight_decay=0.0, alpha_learning_rate=0.1
    )
    told = {}

    class Watched(type(make_gradient("darts(order=2)", space))):
        def after_alpha(self, alphas, before):
            told["gradient"] = [a.grad.clone() for a in alphas.logits]
            told["at"] = before

    net = Supernet(space, seed=4)
    search_differentiable(net, SearchData(train, validation), PLAIN, recipe, seed=7, gradient=Watched(space, 2))

    monkeypatch.setattr("hwnas.supernet.mixed_op.weighted_sum", weighted_sum_reference)  # can be differentiated twice
    reference = Supernet(space, seed=4).double()
    logits = [a.double().requires_grad_() for a in told["at"]]
    names = [n for n, p in reference.named_parameters() if p.numel()]
    weights = dict(reference.named_parameters())

    def loss(split: Split, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        gates = [a.softmax(0) for a in logits]
        found = torch.func.functional_call(reference, weights, (torch.from_numpy(split.images).double(), gates))
        return F.cross_entropy(found, torch.from_numpy(split.labels))

    gradients = torch.autograd.grad(loss(train, weights), [weights[n] for n in names], create_graph=True)
    ahead = weights | {n: weights[n] - rate * (g + decay * weights[n]) for n, g in zip(names, gradients, strict=True)}
    expected = torch.autograd.grad(loss(validation, ahead), logits, allow_unused=True)
    first_order = torch.autograd.grad(loss(validation, weights), logits, allow_unused=True)
    compared = 0
    for found, right, plain in zip(told["gradient"], expected, first_order, strict=True):
        if right is not None and right.abs().max() > 1e-6:
            torch.testing.assert_close(found.double(), right, rtol=2e-2, atol=2e-5)
            assert (plain - right).abs().max() > 4 * (found.double() - right).abs().max()
            compared += 1
    assert compared > 0


def test_second_order_leaves_the_weights_where_they_were():
    space = make_space("chain(kind='dense',input=(5,),classes=3,layers=1,widths=(4,),activations=('relu','tanh'))")
    rng = np.random.default_rng(0)
    data = SearchData(*(Split(rng.standard_normal((6, 5)).astype(np.float32), np.arange(6) % 3) for _ in range(2)))
    recipe = GradientRecipe(epochs=1, batch_size=6, learning_rate=1e-12, least_learning_rate=0.0)
    net = Supernet(space, seed=4)
    before = {name: value.clone() for name, value in net.named_parameters()}
    search_differentiable(net, data, PLAIN, recipe, seed=7, gradient=make_gradient("darts(order=2)", space))
    for name, value in net.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-7)


def test_gdas_draws_by_the_probabilities_and_passes_the_soft_gradient():
    alphas = random_alphas(CELL)
    gdas = make_gradient("gdas", CELL)
    gdas.epoch(0.5)
    assert gdas.temperature == pytest.approx(5.05)
    draws = random.Random(0)
    counts = [np.zeros(len(c.options)) for c in CELL.choices]
    for _ in range(3000):
        for i, gate in enumerate(gdas.alpha_gates(alphas, draws)):
            ((option, weight),) = gate.items()
            assert float(weight.detach()) == pytest.approx(1.0, abs=1e-6)
            counts[i][option] += 1
    for count, p in zip(counts, alphas.probabilities(), strict=True):
        np.testing.assert_allclose(count / 3000, p.detach().numpy(), atol=0.04)
    # The derivative of a softmax over temperature: p_k (delta - p) / T for the one that was drawn.
    gate = gdas.alpha_gates(alphas, draws)[0]
    ((option, weight),) = gate.items()
    (slope,) = torch.autograd.grad(weight, [alphas.logits[0]])
    assert abs(float(slope.sum())) < 1e-6
    assert float(slope[option]) > 0
    assert (slope[[o for o in range(5) if o != option]] < 0).all()


def test_proxyless_gradient_is_that_of_the_binary_gates():
    alphas = random_alphas(CELL)
    proxyless = make_gradient("proxyless", CELL)
    gates = proxyless.alpha_gates(alphas, random.Random(1))
    for gate, logits in zip(gates, alphas.logits, strict=True):
        (i, g_i), (j, g_j) = gate.items()
        assert sorted((float(g_i.detach()), float(g_j.detach()))) == [0.0, 1.0]
        towards = {i: 0.7, j: -1.3}  # dL/dg of the two
        (found,) = torch.autograd.grad(towards[i] * g_i + towards[j] * g_j, [logits])
        p_i = float(logits[i].exp() / (logits[i].exp() + logits[j].exp()))
        expected = torch.zeros_like(logits)  # equation 4: sum_k dL/dg_k p_k (delta_ik - p_i)
        expected[i] = towards[i] * p_i * (1 - p_i) - towards[j] * (1 - p_i) * p_i
        expected[j] = -expected[i]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_proxyless_leaves_the_probabilities_of_what_was_not_drawn():
    alphas = random_alphas(CELL)
    proxyless = make_gradient("proxyless", CELL)
    gates = proxyless.alpha_gates(alphas, random.Random(2))
    before, old = [p.detach().clone() for p in alphas.probabilities()], alphas.copy()
    with torch.no_grad():
        for a in alphas.logits:
            a += torch.randn(a.shape, generator=torch.Generator().manual_seed(5))
    proxyless.after_alpha(alphas, old)
    for gate, p, q in zip(gates, before, alphas.probabilities(), strict=True):
        rest = [o for o in range(len(p)) if o not in gate]
        torch.testing.assert_close(q[rest], p[rest])
        assert (q[list(gate)] - p[list(gate)]).abs().min() > 1e-4


def test_single_paths_are_drawn_by_the_probabilities_within_the_rules():
    alphas = random_alphas(CELL, 3)
    draws = random.Random(0)
    drawn = np.array([sampled_genotype(alphas, CELL, draws) for _ in range(3000)])
    for i, p in enumerate(alphas.probabilities()):
        np.testing.assert_allclose(np.bincount(drawn[:, i], minlength=5) / 3000, p.detach().numpy(), atol=0.04)
    darts = random_alphas(DARTS, 3)
    assert all(DARTS.check(g) == g for g in (sampled_genotype(darts, DARTS, draws) for _ in range(50)))


def test_pdarts_drops_the_weakest_options_and_searches_the_rest():
    rows = [[0.0, 3.0, 1.0, 2.0, -1.0]] * 6
    pdarts = make_gradient("pdarts(kept=(1.0,0.6,0.4),dropout=(0.0,0.0,0.0))", CELL)
    assert pdarts.stages == 3
    assert pdarts.open(None, 0) is None
    opened = pdarts.open(alphas_of(CELL, rows), 1)
    assert opened == [[1, 2, 3]] * 6
    later = Alphas(CELL, 0, opened)
    gates = pdarts.weight_gates(later, random.Random(0))
    assert [sorted(g) for g in gates] == [[1, 2, 3]] * 6
    assert all(float(sum(g.values())) == pytest.approx(1.0) for g in gates)
    assert all(float(p[[0, 4]].sum()) == 0 for p in later.probabilities())
    assert set(pdarts.derive(later)) <= {1, 2, 3}


def test_pdarts_drops_skips_less_and_less():
    pdarts = make_gradient("pdarts(kept=(1.0,),dropout=(0.5,))", CELL)
    pdarts.stage(0)
    alphas = random_alphas(CELL)
    p = [float(row[SKIP].detach()) for row in alphas.probabilities()]
    for share in (0.0, 0.5, 1.0):
        pdarts.epoch(share)
        chance = 0.5 * (1 - share)
        draws = random.Random(1)
        seen = np.array([[float(g[SKIP].detach()) for g in pdarts.weight_gates(alphas, draws)] for _ in range(1500)])
        assert abs((seen == 0).mean() - chance) < 0.02
        np.testing.assert_allclose(seen.mean(0), p, rtol=0.1)  # scaled up, so that the mean stays


@pytest.mark.parametrize("most", [0, 1, 2, 6])
def test_pdarts_bounds_skips_and_takes_the_next_best_where_they_were_weakest(most):
    skip_strength = [5.0, 4.0, 3.0, 2.0, 1.5, 1.2]
    rows = [[0.0, s, 0.5, 1.0, -1.0] for s in skip_strength]
    pdarts = make_gradient(f"pdarts(most_skips={most})", CELL)
    genotype = pdarts.derive(alphas_of(CELL, rows))
    assert genotype == tuple(SKIP if i < most else CONV3 for i in range(6))


def test_zeros_that_cut_the_output_off_give_way_the_weakest_first():
    darts = make_gradient("darts", CELL)
    rows = [[9.0, 0.0, 0.0, lead, 0.0] for lead in (1.0, 2.0, 1.0, 3.0, 1.0, 1.0)]
    assert darts.derive(alphas_of(CELL, rows)) == (0, 0, 0, CONV3, 0, 0)  # edge 0->3 connects alone, and is the nearest
    rows[3][3] = 0.5  # then 0->2 gives way first, and 2->3 must too
    assert darts.derive(alphas_of(CELL, [*rows[:5], [9.0, 0.0, 0.0, 1.9, 0.0]])) == (0, CONV3, 0, 0, 0, CONV3)
    for seed in range(30):
        genotype = darts.derive(random_alphas(CELL, seed))
        assert not any(isinstance(n.op, Zero) for n in simplify(CELL.decode(genotype)).nodes)


def test_collapse_is_more_than_half_skips():
    darts = make_gradient("darts", CELL)

    def of(genotype: tuple[int, ...]) -> Alphas:
        return alphas_of(CELL, [[4.0 * (o == v) for o in range(5)] for v in genotype])

    assert darts.collapsed(of((1, 1, 1, 1, 3, 3)))
    assert not darts.collapsed(of((1, 1, 1, 3, 3, 3)))
    assert darts.collapsed(of((1, 0, 3, 1, 0, 0)))  # what is absent does not count
    assert not darts.collapsed(of((0, 0, 0, 3, 0, 0)))
    assert darts.skips(of((1, 0, 3, 1, 0, 0))) == "2 of 3"


def test_the_warning_is_heard_once_when_skips_take_over():
    rng = np.random.default_rng(0)
    splits = [Split(rng.standard_normal((16, 3, 8, 8)).astype(np.float32), np.arange(16) % 3) for _ in range(2)]
    recipe = GradientRecipe(epochs=3, batch_size=8, steps=1, alpha_learning_rate=1e-9, alpha_weight_decay=0.0)

    def search(option: int) -> None:
        start = alphas_of(CELL, [[3.0 * (o == option) for o in range(5)] for _ in range(6)])
        search_differentiable(Supernet(CELL, 0), SearchData(*splits), PLAIN, recipe, seed=0, alphas=start)

    with pytest.warns(CollapseWarning, match="6 of 6") as caught:
        search(SKIP)
    assert len(caught) == 1
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        search(CONV3)


def test_expected_latency_is_the_mean_over_all_genotypes():
    """The probability of each genotype times the sum of its slots' entries, enumerated."""
    table = {placed: random.Random(str(placed)).random() for placed in placed_ops(CELL)}
    latency = ExpectedLatency.of_ops(CELL, table)
    alphas = random_alphas(CELL, 1)
    probabilities = [p.detach().double() for p in alphas.probabilities()]
    fixed = sum(
        table.get(placed, 0.0) for node in CELL.decode((0,) * 6).nodes
        if node.name not in {s.name for s in CELL.slots} for placed in [CELL.decode((0,) * 6).placed(node)]
    )  # fmt: skip
    rows = []
    for i in range(6):
        row = []
        for option in range(5):
            arch = CELL.decode((option,) * 6)
            slots = [s for s in CELL.slots if CELL.choice_indices(s) == (i,)]
            nodes = [n for n in arch.nodes if n.name in {s.name for s in slots}]
            row.append(sum(table.get(arch.placed(n), 0.0) for n in nodes))
        rows.append(row)
    expected = 0.0
    for genotype in product(range(5), repeat=6):
        chance = np.prod([float(probabilities[i][o]) for i, o in enumerate(genotype)])
        expected += chance * (fixed + sum(rows[i][o] for i, o in enumerate(genotype)))
    assert float(latency.milliseconds(probabilities)) == pytest.approx(expected, rel=1e-6)


def test_expected_latency_of_tied_choices_and_shapes():
    """A stage's width and depth and each layer's own choice decide a slot together."""
    space = make_space(
        "mobilenet(input=(1,8,8), classes=3, stages=((8,2,2),), stem=8, first=8, head=16, kernels=(3,5), expansions=(3,), "
        "depths=(1,2), widths=(1.0,))"
    )
    table = {placed: 1e-6 * op_macs_params(placed)[0] for placed in placed_ops(space)}
    latency = ExpectedLatency.of_ops(space, table)
    for genotype in (space.sample(random.Random(s)) for s in range(10)):
        arch = space.decode(genotype)
        expected = sum(table.get(arch.placed(n), 0.0) for n in arch.nodes)
        one_hot = [torch.tensor(row, dtype=torch.float64) for row in space.one_hot(genotype)]
        assert float(latency.milliseconds(one_hot)) == pytest.approx(expected, rel=1e-9)


def test_expected_latency_has_a_gradient_and_a_table_per_choice():
    latency = ExpectedLatency.of_choices([[0.0, 1.0, 2.0, 3.0, 4.0]] * 6, constant_ms=2.0)
    alphas = random_alphas(CELL)
    found = latency.milliseconds(alphas.probabilities())
    assert float(found) == pytest.approx(2 + sum(float((p * torch.arange(5)).sum()) for p in alphas.probabilities()), rel=1e-6)
    gradient = torch.autograd.grad(found, list(alphas.logits))
    assert all(float(g.abs().max()) > 0 for g in gradient)
    equal = [torch.full((5,), 0.2)] * 6
    assert float(latency.share(equal)) == pytest.approx(1.0)
    with pytest.raises(UserError, match="lacks an op"):
        ExpectedLatency.of_ops(CELL, {})


@pytest.mark.parametrize(
    "text",
    ["darts(order=3)", "gdas(end=0.0)", "gdas(start=0.1,end=1.0)", "pdarts(kept=(0.5,0.8))", "pdarts(dropout=(0.1,))",
     "pdarts(most_skips=-1)", "darts(speed=1)", "nothing"],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(text):
    with pytest.raises(UserError) as caught:
        make_gradient(text, CELL)
    assert "\n" not in str(caught.value)


def test_mapped_gates_run_only_what_they_name_and_equal_a_vector_with_zeros():
    net = Supernet(CELL, 0).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for _ in range(3):
        chosen = [sorted(rng.choice(5, size=int(rng.integers(1, 4)), replace=False).tolist()) for _ in range(6)]
        mapped = [{o: torch.tensor(float(rng.random())) for o in options} for options in chosen]
        vectors = [torch.stack([m.get(o, torch.tensor(0.0)) for o in range(5)]) for m in mapped]
        torch.testing.assert_close(net(x, mapped), net(x, vectors), rtol=1e-4, atol=1e-5)
    for bad in ({}, {5: torch.tensor(1.0)}, {0: torch.ones(2)}):
        with pytest.raises(UserError):
            net(x, [bad, *[0] * 5])
