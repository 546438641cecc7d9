"""What the supernet of every space in hwnas/spaces must keep. A new space is tested by existing."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
import torch
from cases import build_space, space_arguments

from hwnas.data import SearchData, Split
from hwnas.errors import UserError
from hwnas.ir.arch import Node
from hwnas.ir.op import Op, PlacedOp
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.latency.device import Device
from hwnas.latency.session import Session
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.ops import op_class
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.identity import Identity
from hwnas.ops.mbconv import MbConv
from hwnas.ops.pool import Pool
from hwnas.ops.sum import Sum
from hwnas.ops.zero import Zero
from hwnas.placements import placements
from hwnas.plugins import known
from hwnas.space import Choice, Genotype, Slot, Space
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate, evaluate_many, recalibrate
from hwnas.supernet.supernet import Supernet

CASES = [(name, arguments) for name in known("hwnas.spaces") for arguments in space_arguments(name)]
ENTANGLED = tuple(c for c in map(op_class, known("hwnas.ops")) if c.entangled)
IDS = [f"{name}{i}" for name in known("hwnas.spaces") for i in range(len(space_arguments(name)))]


def randomized(space: Space, seed: int = 0) -> Supernet:
    """Nothing neutral is left: biases, scales and running statistics are random too."""
    supernet = Supernet(space, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for node, ops in placements(space).items():
            for placed in ops:
                for name, spec in placed.graph.weights():
                    view = supernet.weight(node, placed.op, name, spec.shape)
                    noise = torch.rand(spec.shape, generator=rng)
                    if name.endswith("running_var"):
                        view.copy_(0.5 + noise)
                    elif len(spec.shape) == 1:
                        view.copy_(float(spec.init == "ones") + 0.6 * noise - 0.3)
    return supernet


def home(supernet: Supernet, view: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The parameter or buffer of the supernet that a view lies in."""
    begin = view.data_ptr()
    for name, value in (*supernet.named_parameters(), *supernet.named_buffers()):
        if span(value)[0] <= begin < span(value)[1]:
            return name, value
    raise AssertionError("a weight must lie in the supernet")


def same_place(like: torch.Tensor, view: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """The part of `like`, laid out as the bank is, that the view has of the bank."""
    offset = (view.data_ptr() - bank.data_ptr()) // view.element_size()
    return like.contiguous().as_strided(view.shape, view.stride(), offset)


def span(view: torch.Tensor) -> tuple[int, int]:
    """The first byte of a view and the one after its last."""
    last = sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True))
    return view.data_ptr(), view.data_ptr() + (last + 1) * view.element_size()


def path_views(supernet: Supernet, genotype: Genotype) -> dict[str, torch.Tensor]:
    """What a path trains, by IR name."""
    arch = simplify(supernet.space.decode(genotype))
    return {
        f"{node.name}.{name}": supernet.weight(node.name, node.op, name, spec.shape)
        for node in arch.nodes
        for name, spec in arch.placed(node).graph.weights()
        if not spec.buffer
    }


def genotypes(space: Space, count: int, seed: int = 0) -> list[Genotype]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def images(space: Space, count: int = 2, seed: int = 0, dtype=np.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, *space.input.dims)).astype(dtype))


def shaping(space: Space) -> set[int]:
    """The choices that some genotype shows to decide the shape of something."""
    found = set()
    free = [i for i in range(len(space.choices)) if not any(space.choices[i].name in k.choices for k in space.keeps)]
    for genotype in genotypes(space, 12, seed=4):
        specs = space.decode(genotype).specs
        for i in free:
            for option in range(len(space.choices[i].options)):
                if space.decode((*genotype[:i], option, *genotype[i + 1 :])).specs != specs:
                    found.add(i)
    return found


@pytest.fixture(params=CASES, ids=IDS, scope="module")
def space(request) -> Space:
    return build_space(*request.param)


@pytest.fixture(scope="module")
def supernet(space) -> Supernet:
    return randomized(space).eval()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_one_path_is_the_derived_network_is_onnx_runtime(space, supernet):
    device = Device(name="here")
    x = images(space, 3)
    for genotype in genotypes(space, 4):
        arch = simplify(space.decode(genotype))
        weights = derive(supernet, genotype)
        assert sorted(weights) == sorted(name for name, _ in arch.weights())
        with torch.no_grad():
            path = supernet(x, genotype)
            derived = to_torch(arch, weights).eval()(x)
        runtime = torch.from_numpy(Session(to_onnx(arch, weights).SerializeToString(), device).predict(x.numpy()))
        assert float(path.abs().max()) > 0
        assert close(derived, path, 1e-4)
        assert close(runtime, path, 1e-4)


def test_many_paths_merged_are_the_derived_networks_recalibrated_and_evaluated(space, supernet):
    paths, rng = genotypes(space, 6, seed=5), np.random.default_rng(5)
    classes = simplify(space.decode(paths[0])).specs[space.output].elements
    parts = (images(space, count, seed).numpy() for seed, count in ((6, 24), (7, 17)))
    data = SearchData(*(Split(x, rng.integers(0, classes, len(x))) for x in parts))
    found = evaluate_many(supernet, paths, data, batch_size=8, batches=3, seed=1)
    for genotype, merged in zip(paths, found, strict=True):
        network = to_torch(simplify(space.decode(genotype)), derive(supernet, genotype))
        recalibrate(network, data.train, batch_size=8, batches=3, seed=1)
        alone = evaluate(network, data.validation)
        assert merged.loss == pytest.approx(alone.loss, rel=1e-5)
        assert (merged.accuracy, merged.images) == (alone.accuracy, 17)
        assert merged.macro_f1 == pytest.approx(alone.macro_f1)


def test_one_path_trains_as_the_derived_network_does(space):
    """Outputs, gradients and running statistics of a step, in double precision; derived weights are rounded to float32."""
    for genotype in genotypes(space, 2, seed=3):
        supernet = randomized(space).double().train()
        network = to_torch(simplify(space.decode(genotype)), derive(supernet, genotype)).double().train()
        x = images(space, 4, dtype=np.float64)
        expected, found = network(x), supernet(x, genotype)
        assert close(found, expected, 1e-9)
        expected.square().sum().backward()
        found.square().sum().backward()
        largest = max(float(p.grad.abs().max()) for p in network.parameters())
        for name, view in path_views(supernet, genotype).items():
            bank = home(supernet, view)[1]
            difference = same_place(bank.grad, view, bank) - network.get_parameter(name).grad
            assert float(difference.abs().max()) <= 1e-9 * largest, name
        derived = derive(supernet, genotype)  # the running statistics have moved
        for name, value in network.weights().items():
            assert np.allclose(derived[name], value, rtol=1e-9, atol=1e-12), name


def test_one_hot_vectors_are_the_numbers(space, supernet):
    shapes = shaping(space)
    x = images(space)
    for genotype in genotypes(space, 3, seed=1):
        vectors = [torch.tensor(row) for row in space.one_hot(genotype)]
        gates = [genotype[i] if i in shapes else vectors[i] for i in range(len(genotype))]
        with torch.no_grad():
            expected, found = supernet(x, genotype), supernet(x, gates)
            mixed = supernet(x, [g if i % 2 else genotype[i] for i, g in enumerate(gates)])
        assert close(found, expected, 1e-4)
        assert close(mixed, expected, 1e-4)


def test_a_vector_for_a_choice_of_shapes_is_refused(space, supernet):
    shapes = shaping(space)
    for i in sorted(shapes):
        refused = 0
        for genotype in genotypes(space, 8, seed=2):  # where another choice skips the layer, nothing is decided
            gates = list(genotype)
            count = len(space.choices[i].options)
            gates[i] = torch.full((count,), 1 / count)
            with suppress(UserError), torch.no_grad():
                supernet(images(space), gates)
                continue
            refused += 1
        assert refused > 0


def test_gates_that_do_not_fit_are_refused(space, supernet):
    genotype = genotypes(space, 1)[0]
    count = len(space.choices[0].options)
    first = [count, -1, torch.ones(count + 1), torch.ones(max(0, count - 1)), torch.ones(1, count), torch.tensor(0)]
    for gates in (*((bad, *genotype[1:]) for bad in first), genotype[1:], (*genotype, 0), ()):
        with pytest.raises(UserError) as caught:
            supernet(images(space), gates)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        supernet(images(space), [torch.ones(len(c.options) + 1) for c in space.choices])


def test_a_path_that_the_space_does_not_hold_is_refused(space, supernet):
    for keep in space.keeps:
        genotype = list(genotypes(space, 1)[0])
        for choice in keep.choices:
            genotype[[c.name for c in space.choices].index(choice)] = keep.absent
        with pytest.raises(UserError):
            supernet(images(space), tuple(genotype))


def test_entangled_options_share_memory_and_others_do_not(space, supernet):
    banks = [span(value) for value in (*supernet.parameters(), *supernet.buffers())]
    shared = apart = 0
    for node, ops in placements(space).items():
        spans: dict[tuple[Op, str], set[tuple[int, int]]] = {}
        for placed in ops:
            for name, spec in placed.graph.weights():
                view = supernet.weight(node, placed.op, name, spec.shape)
                assert tuple(view.shape) == spec.shape
                first, last = span(view)
                assert any(begin <= first < last <= end for begin, end in banks)
                spans.setdefault((placed.op, name), set()).add((first, last))
        for a, b in combinations_with_replacement(spans, 2):
            same = a[1] == b[1] and (a[0] == b[0] or (type(a[0]) is type(b[0]) and a[0].entangled))
            for left, right in product(spans[a], spans[b]):
                assert (left[0] < right[1] and right[0] < left[1]) == same, (node, a, b)
            shared, apart = shared + (same and a != b), apart + (not same)
    assert apart > 0
    if any(len({o for o in s.options if isinstance(o, t)}) > 1 for s in space.slots for t in ENTANGLED):
        assert shared > 0


def test_shared_weights_are_the_leading_channels_and_the_centre_of_the_kernel():
    slot = Slot("s", ("c",), (ConvBn(4, 5), ConvBn(2, 3), ConvBn(3, 1)), ("x",))
    supernet = Supernet(Space("one", TensorSpec((3, 6, 6)), (Choice("c", ("a", "b", "d")),), (slot,), "s"))
    (full,) = [v for v in supernet.state_dict().values() if v.dim() == 4]
    assert full.shape == (4, 3, 5, 5)
    for op, option in ((ConvBn(2, 3), full[:2, :, 1:4, 1:4]), (ConvBn(3, 1), full[:3, :, 2:3, 2:3]), (ConvBn(4, 5), full)):
        name, spec = next((n, s) for n, s in weights_of(op) if len(s.shape) == 4)
        assert torch.equal(supernet.weight("s", op, name, spec.shape), option)


def weights_of(op):
    return PlacedOp(op, (TensorSpec((3, 6, 6)),)).graph.weights()


def test_gradients_reach_exactly_the_sampled_path(space):
    supernet = randomized(space).train()
    for genotype in genotypes(space, 3, seed=6):
        supernet.zero_grad()
        supernet(images(space, 4), genotype).square().sum().backward()
        untouched = {name: torch.ones_like(p) for name, p in supernet.named_parameters()}
        moved = 0
        for view in path_views(supernet, genotype).values():
            name, bank = home(supernet, view)
            assert bank.grad is not None
            moved += bool(same_place(bank.grad, view, bank).any())
            same_place(untouched[name], view, bank).zero_()
        assert moved > 0
        for name, parameter in supernet.named_parameters():
            assert parameter.grad is None or not (parameter.grad * untouched[name]).any()


def test_weights_are_decided_by_the_seed(space):
    a, b, c = (Supernet(space, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


EDGE = (Zero(), Identity(), ConvBn(2), ConvBn(2, 1), Pool("avg"), Pool("max"))
ONE_SLOT = Space(
    "edge", TensorSpec((2, 5, 5)), (Choice("c", tuple("abcdef")),), (Slot("s", ("c",), EDGE, ("x",)),), "s"
)  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_soft_mixture_is_the_weighted_sum_over_its_options(seed, training):
    x = images(ONE_SLOT, 3, seed, np.float64)
    weights = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, 6))  # of any sign: gates need no sum
    if seed == 0:
        weights = torch.softmax(weights, 0)
    with torch.no_grad():
        parts = [randomized(ONE_SLOT, 1).double().train(training)(x, (o,)) for o in range(6)]
        found = randomized(ONE_SLOT, 1).double().train(training)(x, [weights])
    assert torch.allclose(found, sum(w * y for w, y in zip(weights, parts, strict=True)), rtol=1e-12, atol=1e-12)


def test_a_mixture_over_tied_choices_weighs_by_their_product():
    """Two choices decide one slot; options that are one op count together; a number picks its row."""
    kinds, kernels = ("skip", "conv"), (1, 3, 5)
    options = tuple(Identity() if kind == "skip" else MbConv(2, k, 2) for kind in kinds for k in kernels)
    space = Space(
        "two", TensorSpec((2, 6, 6)), (Choice("t", kinds), Choice("k", tuple(map(str, kernels)))),
        (Slot("s", ("t", "k"), options, ("x",)),), "s",
    )  # fmt: skip
    supernet = randomized(space).double().eval()
    x = images(space, 2, dtype=np.float64)
    a, b = torch.tensor([0.3, 1.7], dtype=torch.float64), torch.tensor([0.2, -0.5, 0.9], dtype=torch.float64)
    with torch.no_grad():
        parts = {(i, j): supernet(x, (i, j)) for i in range(2) for j in range(3)}
        both = sum(a[i] * b[j] * y for (i, j), y in parts.items())
        assert torch.allclose(supernet(x, [a, b]), both, rtol=1e-12, atol=1e-12)
        assert torch.allclose(supernet(x, [1, b]), sum(b[j] * parts[1, j] for j in range(3)), rtol=1e-12, atol=1e-12)
        assert torch.allclose(supernet(x, [a, 2]), sum(a[i] * parts[i, 2] for i in range(2)), rtol=1e-12, atol=1e-12)


def test_a_choice_tied_over_slots_weighs_each_of_them():
    nodes = (
        Slot("first", ("c",), EDGE, ("x",)),
        Slot("second", ("c",), EDGE, ("first",)),
        Node("sum", Sum(), ("first", "second")),
    )
    space = Space("tied", TensorSpec((2, 5, 5)), (Choice("c", tuple("abcdef")),), nodes, "sum")
    supernet = randomized(space).double().eval()
    alone = {
        n: Space(n, TensorSpec((2, 5, 5)), space.choices, (Slot(n, ("c",), EDGE, ("x",)),), n) for n in ("first", "second")
    }
    parts = {}
    for name, one in alone.items():
        parts[name] = Supernet(one).double().eval()
        parts[name].load_state_dict({k: v for k, v in supernet.state_dict().items() if k.startswith(f"{name}:")})
    x = images(space, 2, dtype=np.float64)
    gates = torch.softmax(torch.arange(6, dtype=torch.float64), 0)

    def mixture(name: str, value: torch.Tensor) -> torch.Tensor:
        return sum(w * parts[name](value, (o,)) for o, w in enumerate(gates))

    with torch.no_grad():
        y = mixture("first", x)
        assert torch.allclose(supernet(x, [gates]), y + mixture("second", y), rtol=1e-12, atol=1e-12)
