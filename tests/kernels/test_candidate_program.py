"""Candidate programs against PyTorch's lowering of the same primitives in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwnas.errors import UserError
from hwnas.ir import prims
from hwnas.ir.arch import INPUT, Arch
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels import candidate_phases, candidate_program
from hwnas.kernels.candidate_plan import is_winograd
from hwnas.kernels.candidate_program import CandidateProgram, Node
from hwnas.lower.torch import Mode, apply_prim, to_torch
from hwnas.space import Space
from hwnas.spaces import darts, mobilenet, nasbench201

ISAS = ("avx512", "avx2", "baseline")
SPACES = {
    "nasbench201": nasbench201.space((3, 15, 14), channels=5, cells=1),
    "mobilenet": mobilenet.space((3, 18, 17), 10, stages=((24, 2, 2), (40, 2, 2)), head=70),
    "squeeze": mobilenet.space((3, 16, 16), 10, stages=((24, 2, 2), (40, 2, 1)), head=70, se=True, act="hardswish"),
    "darts": darts.space((3, 16, 16), 10, channels=8, cells=3),
}  # fmt: skip


class Network:
    """Nodes while they are written, with random weights, and what PyTorch makes of them."""

    def __init__(self, spec: TensorSpec, seed: int = 0) -> None:
        self.spec, self.nodes, self.specs = spec, [], [spec]
        self.rng = torch.Generator().manual_seed(seed)

    def add(self, prim: prims.Prim, *inputs: int) -> int:
        xs = [self.specs[i] for i in inputs]
        weights = {}
        for w in prim.weights(xs):
            value = torch.randn(w.shape, generator=self.rng) * (w.fan_in**-0.5 if w.init == "kaiming" else 0.3)
            weights[w.name] = value.abs() + 0.5 if w.init == "ones" else value
        self.specs.append(prim.output(xs))
        self.nodes.append(Node(prim, inputs, weights))
        return len(self.nodes)

    def logits(self, value: int) -> int:
        """The value as an output: all its pixels where it is small, else their mean."""
        if len(self.specs[value].dims) == 3 and self.specs[value].dims[1:] != (1, 1):
            value = self.add(prims.Linear(13), self.add(prims.Flatten(), value))
        return value

    def images(self, n: int) -> Tensor:
        return torch.randn(n, *self.spec.dims, generator=self.rng)

    def program(self, *outputs: int) -> CandidateProgram:
        return CandidateProgram(self.spec, self.nodes, outputs)

    def reference(self, images: Tensor, outputs: Sequence[int], batches: Sequence[Tensor] = ()) -> Tensor:
        """In float64, after its statistics became the mean over batches."""
        weights = [{name: w.double() for name, w in node.weights.items()} for node in self.nodes]
        for i, batch in enumerate(batches):
            self._values(batch, weights, Mode(True, 1 / (i + 1)))
        values = self._values(images, weights, Mode(False))
        return torch.stack([values[o].flatten(1) for o in outputs])

    def _values(self, images: Tensor, weights: Sequence[dict[str, Tensor]], mode: Mode) -> list[Tensor]:
        values = [images.double()]
        for node, w in zip(self.nodes, weights, strict=True):
            values.append(apply_prim(node.prim, [values[i] for i in node.inputs], w.__getitem__, mode))
        return values


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert found.isfinite().all()
    error = float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)) if wanted.numel() else 0.0
    assert error <= tolerance, f"off by {error:.1e}"


def check(network: Network, *outputs: int, n: int = 5) -> None:
    """run with given statistics, calibrate, and run with its own."""
    images = network.images(n)
    batches = [network.images(n), network.images(n + 1)]
    program = network.program(*outputs)
    assert_near(program.run(images), network.reference(images, outputs))
    program.calibrate(batches)
    assert_near(program.run(images), network.reference(images, outputs, batches), 1e-4)


def from_arch(space: Space, genotype: tuple[int, ...]) -> tuple[Arch, Network, int]:
    arch = simplify(space.decode(genotype))
    network, values = Network(arch.input), {INPUT: 0}
    for node in arch.nodes:
        graph = arch.placed(node).graph
        local = [values[i] for i in node.inputs]
        for step in graph.steps:
            local.append(network.add(step.prim, *(local[i] for i in step.inputs)))
        values[node.name] = local[graph.output]
    return arch, network, values[arch.output]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", SPACES)
def test_networks_of_the_spaces(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_CPU_ISA", isa)
    rng = random.Random(isa)
    for _ in range(2):
        _, network, output = from_arch(SPACES[name], SPACES[name].sample(rng))
        check(network, output, n=9)


def test_agrees_with_the_module_of_an_arch() -> None:
    space = SPACES["squeeze"]
    arch, network, output = from_arch(space, space.sample(random.Random(3)))
    module = to_torch(arch)
    state = module.state_dict()
    names = [f"{n.name}.{s.name}" for n in arch.nodes for s in arch.placed(n).graph.steps]
    nodes = [
        Node(node.prim, node.inputs, {w: state[f"{name}.{w}"] for w in node.weights})
        for name, node in zip(names, network.nodes, strict=True)
    ]
    images = network.images(3)
    with torch.no_grad():
        wanted = module.double().eval()(images.double())
    assert_near(CandidateProgram(arch.input, nodes, [output]).run(images)[0], wanted)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 21), st.integers(1, 21)), n=st.integers(1, 4), out=st.integers(1, 40),
    window=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3)), depthwise=st.booleans(),
    bias=st.booleans(), before=st.sampled_from((None, *prims.ACTIVATIONS)), after=st.sampled_from((None, *prims.ACTIVATIONS)),
    isa=st.sampled_from(ISAS),
)  # fmt: skip
def test_any_convolution(size, n, out, window, depthwise, bias, before, after, isa) -> None:  # type: ignore[no-untyped-def]
    kernel, stride, padding, dilation = window
    c, *sides = size
    if min(sides) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    network = Network(TensorSpec(size))
    x = network.add(prims.Activation(before), 0) if before else 0
    groups = c if depthwise else 1
    y = network.add(prims.Conv(c if depthwise else out, kernel, stride, padding, dilation, groups, bias), x)
    y = network.add(prims.BatchNorm(), y)
    y = network.add(prims.Activation(after), y) if after else y
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CPU_ISA", isa)
        images, output = network.images(n), network.logits(y)
        assert_near(network.program(output).run(images), network.reference(images, [output]))
        if n * network.specs[y].elements > network.specs[y].channels:
            program = network.program(output)
            program.calibrate([images])
            mean, variance = program.statistics(1 if before is None else 2)
            values = network._values(
                images, [{k: w.double() for k, w in m.weights.items()} for m in network.nodes], Mode(False)
            )
            raw = values[network.nodes[0 if before is None else 1].inputs[0] + 1]
            spread = raw.std().clamp_min(1e-3)
            assert float((mean[: raw.shape[1]] - raw.mean((0, 2, 3))).abs().max() / spread) < 1e-5
            assert float((variance - raw.var((0, 2, 3))).abs().max() / spread**2) < 1e-5


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(3, 12), st.integers(3, 12)), kind=st.sampled_from(("max", "avg")),
       window=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1)), before=st.booleans())  # fmt: skip
def test_any_pool(size, kind, window, before) -> None:  # type: ignore[no-untyped-def]
    kernel, stride, padding = window
    network = Network(TensorSpec(size))
    x = network.add(prims.BatchNorm(), 0) if before else 0
    y = network.add(prims.Pool(kind, kernel, stride, min(padding, kernel // 2)), x)
    check(network, network.logits(network.add(prims.BatchNorm(), y)), n=2)


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 18)), kind=st.sampled_from(("max", "avg")),
       before=st.sampled_from((None, *prims.ACTIVATIONS)), isa=st.sampled_from(ISAS))  # fmt: skip
def test_pools_whose_windows_overlap(size, kind, before, isa) -> None:  # type: ignore[no-untyped-def]
    network = Network(TensorSpec(size))
    x = network.add(prims.Activation(before), 0) if before else 0
    output = network.logits(network.add(prims.BatchNorm(), network.add(prims.Pool(kind, 3, 1, 1), x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CPU_ISA", isa)
        check(network, output, n=2)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_pool_keeps_what_is_not_a_number(width) -> None:  # type: ignore[no-untyped-def]
    network = Network(TensorSpec((16, 3, width)))
    for kind in ("max", "avg"):
        output = network.add(prims.GlobalPool(), network.add(prims.Pool(kind, 3, 1, 1), 0))
        assert network.program(output).run(torch.full((1, 16, 3, width), torch.nan)).isnan().all()


@settings(max_examples=40, deadline=None)
@given(
    c=st.sampled_from((16, 17, 32, 50, 70, 200, 384)), out=st.integers(1, 70),
    sides=st.tuples(st.integers(3, 17), st.integers(3, 40)),
    padding=st.integers(0, 2), bias=st.booleans(), before=st.sampled_from((None, *prims.ACTIVATIONS)),
    after=st.sampled_from((None, *prims.ACTIVATIONS)), added=st.booleans(), isa=st.sampled_from(ISAS),
)  # fmt: skip
def test_convolutions_by_tiles(c, out, sides, padding, bias, before, after, added, isa) -> None:  # type: ignore[no-untyped-def]
    conv = prims.Conv(out, 3, padding=padding, bias=bias)
    x = TensorSpec((c, *(side + 2 - 2 * padding for side in sides)))
    assert is_winograd(conv, x) == (4 * -(-sides[0] // 2) * -(-sides[1] // 2) <= 1.3 * sides[0] * sides[1])
    network = Network(x)
    source = network.add(prims.Activation(before), 0) if before else 0
    y = network.add(prims.BatchNorm(), network.add(conv, source))
    y = network.add(prims.Activation(after), y) if after else y
    if added:
        y = network.add(prims.Add(), y, network.add(conv, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CPU_ISA", isa)
        check(network, network.logits(y), n=2)


def test_every_other_primitive_and_every_way_to_be_read() -> None:
    network = Network(TensorSpec((20, 6, 5)))
    add = network.add
    relu = add(prims.Activation("relu"), 0)
    zero = add(prims.Zero(2), relu)
    even, odd = add(prims.Conv(9, stride=2), relu), add(prims.Conv(12, stride=2), add(prims.Shift(), relu))
    both = add(prims.BatchNorm(), add(prims.Concat(), even, odd, zero))  # 41 channels, at 9 and 21
    twice = add(prims.Add(), both, both, add(prims.Activation("tanh"), both))
    normed = add(prims.BatchNorm(affine=False), add(prims.Activation("gelu"), add(prims.Activation("silu"), twice)))
    gate = add(prims.Activation("hardsigmoid"), add(prims.Conv(41, bias=True), add(prims.GlobalPool(), normed)))
    scaled = add(prims.Scale(), add(prims.Activation("relu6"), normed), gate)
    again = add(prims.Scale(), scaled, gate)
    mixed = add(
        prims.Add(), add(prims.BatchNorm(), add(prims.Conv(41, 3, padding=1), scaled)), again, add(prims.Conv(41), scaled)
    )
    shared = add(prims.Conv(41, groups=41), mixed)  # read by two batch norms and itself
    total = add(prims.Add(), add(prims.BatchNorm(), shared), add(prims.BatchNorm(), shared), shared)
    grouped = add(prims.Conv(82, 3, 1, 1, groups=41), total)
    outputs = [
        add(prims.Linear(13, bias=False), add(prims.Activation("elu"), add(prims.Flatten(), v))) for v in (scaled, grouped)
    ]
    outputs.append(add(prims.Linear(13), add(prims.Flatten(), add(prims.GlobalPool(), total))))
    check(network, *outputs, outputs[0])


def test_a_sum_of_many_terms() -> None:
    network = Network(TensorSpec((4, 3, 3)))
    terms = [network.add(prims.Activation(prims.ACTIVATIONS[i % 10]), 0) for i in range(40)]
    check(network, network.logits(network.add(prims.Add(), *terms)))


def test_means_far_from_zero_keep_their_variance() -> None:
    network = Network(TensorSpec((3, 16, 16)))
    bias = network.add(prims.Conv(3, bias=True), 0)
    network.nodes[0].weights["bias"].fill_(1000.0)  # type: ignore[index]
    output = network.logits(network.add(prims.BatchNorm(), bias))
    images, program = network.images(8), network.program(output)
    program.calibrate([images])
    mean, variance = program.statistics(1)
    raw = torch.nn.functional.conv2d(images.double(), network.nodes[0].weights["weight"].double()) + 1000
    assert_near(variance, raw.float().double().var((0, 2, 3)), 1e-4)  # the values themselves have 24 bits
    assert_near(mean, raw.mean((0, 2, 3)), 1e-6)


def shared_networks() -> tuple[Network, list[int]]:
    network = Network(TensorSpec((3, 12, 12)))
    stem = network.add(prims.Activation(), network.add(prims.BatchNorm(), network.add(prims.Conv(16, 3, padding=1), 0)))
    outputs = []
    for kernel in (1, 3, 5):
        branch = network.add(prims.BatchNorm(), network.add(prims.Conv(16, kernel, padding=kernel // 2, groups=16), stem))
        for width in (8, 24):
            outputs.append(network.logits(network.add(prims.BatchNorm(), network.add(prims.Conv(width), branch))))
    return network, outputs


def test_many_networks_in_one_program() -> None:
    network, outputs = shared_networks()
    check(network, *outputs, n=20)
    program, images = network.program(*outputs), network.images(3)
    everything = program.run(images)
    assert torch.equal(program.run(images, wanted=[4, 1]), everything[[4, 1]])
    assert program.run(images, wanted=[]).shape == (0, 3, 13)
    assert program.run(network.images(0)).shape == (len(outputs), 0, 13)


def test_same_bits_with_any_number_of_threads_and_images_at_once() -> None:
    network, outputs = shared_networks()
    batches, images = [network.images(33), network.images(7)], network.images(37)
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            program = network.program(*outputs)
            program.calibrate(batches)
            runs += [program.run(images), torch.cat([program.run(part) for part in images.split(5)], 1)]
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert torch.equal(run, runs[0])


@pytest.mark.parametrize("name", SPACES)
def test_all_memory_is_written_before_it_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, output = from_arch(SPACES[name], SPACES[name].sample(random.Random(1)))
    images = network.images(4)

    def logits(poison: float) -> Tensor:
        filled = lambda count, _: torch.full((count // 4,), poison).view(torch.uint8)  # noqa: E731
        monkeypatch.setattr(candidate_program, "uninitialised_bytes", filled)
        program = network.program(output)
        program.calibrate([images])
        return program.run(images)

    assert torch.equal(logits(1.0), logits(-3.0))
    assert torch.equal(logits(1.0), logits(torch.nan))


@pytest.mark.parametrize("name", SPACES)
def test_storing_and_computing_again_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, output = from_arch(SPACES[name], SPACES[name].sample(random.Random(2)))
    batches, images = [network.images(35), network.images(9)], network.images(6)
    wanted, memory = network.reference(images, [output], batches), []
    for rate in (1e30, 1e-30):  # of memory
        monkeypatch.setattr(candidate_phases, "MEMORY_RATE", rate)
        monkeypatch.setattr(candidate_phases, "CACHE_RATE", rate)
        program = network.program(output)
        program.calibrate(batches)
        assert_near(program.run(images), wanted, 1e-4)
        memory.append(program.calibration_bytes(1000))
    assert memory[1] < memory[0]


def test_memory_is_what_is_live_at_once() -> None:
    network = Network(TensorSpec((16, 8, 8)))
    outputs, image = [], 4 * 16 * 64
    for _ in range(10):
        value = 0
        for _ in range(5):
            value = network.add(prims.BatchNorm(), network.add(prims.Conv(16, 3, padding=1), value))
        outputs.append(network.add(prims.GlobalPool(), value))
    program = network.program(*outputs)
    assert program.calibration_bytes(100) <= 100 * 4 * image


def test_equal_views_are_packed_once() -> None:
    bank = torch.randn(16, 16, 5, 5)
    nodes = [Node(prims.Conv(16, 5, padding=2), (i,), {"weight": bank[:, :, :, :]}) for i in range(3)]
    program = CandidateProgram(TensorSpec((16, 4, 4)), [*nodes, Node(prims.GlobalPool(), (3,))], [4])
    assert program.weight_bytes == 4 * bank.numel()


def test_errors_name_the_remedy() -> None:
    network = Network(TensorSpec((4, 4, 4)))
    flat = network.add(prims.Flatten(), network.add(prims.Conv(4), 0))
    with pytest.raises(UserError, match="outputs of one shape"):
        network.program(1)
    norm = network.add(prims.BatchNorm(), flat)
    with pytest.raises(UserError, match="flattens images only for a Linear"):
        network.program(norm)
    network = Network(TensorSpec((4, 4, 4)))
    program = network.program(network.logits(network.add(prims.BatchNorm(), network.add(prims.Conv(4), 0))))
    for bad in (torch.zeros(2, 4, 4, 5), torch.zeros(4, 4, 4), torch.zeros(2, 4, 4, 4, dtype=torch.float64)):
        with pytest.raises(UserError, match="float32 images"):
            program.run(bad)
    with pytest.raises(UserError, match="empty batch"):
        program.calibrate([network.images(0)])
    with pytest.raises(UserError, match="at least one batch"):
        program.calibrate([])
