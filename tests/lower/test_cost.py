"""cost against published figures, the tables of NAS-Bench-201 and an interpreter of memory written another way."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from hwnas.ir.arch import Arch
from hwnas.ir.op import PlacedOp
from hwnas.ir.prims import Activation, BatchNorm, Flatten
from hwnas.ir.simplify import simplify
from hwnas.lower.cost import Cost, cost, op_macs_params
from hwnas.lower.features import features
from hwnas.ops import read_arch
from hwnas.spaces import make_space
from hwnas.spaces.mobilenet import space as mobilenet

V2 = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


@pytest.mark.parametrize(
    ("width", "side", "params", "macs"),
    [
        (
            1.0,
            224,
            3_504_872,
            300_774_272,
        ),  # Sandler et al. 2018, table 4: 3.4 M and 300 M; parameters as torchvision publishes them
        (1.0, 192, 3_504_872, None),
    ],
)
def test_mobilenet_v2(width, side, params, macs):
    space = mobilenet(
        input=(3, side, side), width=width, stages=V2, kernels=(3,), expansions=(6,), depths=(4,), widths=(1.0,), act="relu6"
    )
    arch = space.decode([0] * len(space.choices))
    found = cost(arch)
    assert found.params == params
    if macs is not None:
        assert found.macs == macs
    assert features(arch).macs == found.macs
    assert features(arch).weight_bytes == 4 * params


def live_convs(code: tuple[int, ...]) -> tuple[int, int]:
    """How many 1x1 and 3x3 convolutions of a NAS-Bench-201 cell the output needs, from the code alone.

    An edge carries something unless it is `none`, or a skip or pool from a node that nothing reaches. A convolution carries
    its batch norm's constants even then.
    """
    edges = dict(zip(((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), code, strict=True))
    filled = {0}
    for node in (1, 2, 3):
        if any(op in (2, 3) or (op in (1, 4) and a in filled) for (a, b), op in edges.items() if b == node):
            filled.add(node)
    carries = {e for e, op in edges.items() if op in (2, 3) or (op in (1, 4) and e[0] in filled)}
    needed = {3}
    for node in (3, 2, 1):
        if node in needed:
            needed |= {a for a, b in carries if b == node}
    used = [edges[e] for e in carries if e[1] in needed]
    return used.count(2), used.count(3)


# The network around the cells, and what one convolution on an edge adds in all 15 cells: stages of 16, 32 and 64 channels.
STAGES = ((16, 32), (32, 16), (64, 8))
AROUND = (73_306, 7_783_040)
CONV1 = (5 * sum(c * c + 2 * c for c, _ in STAGES), 5 * sum(c * c * s * s for c, s in STAGES))
CONV3 = (5 * sum(9 * c * c + 2 * c for c, _ in STAGES), 9 * CONV1[1])


def test_the_closed_form_is_that_of_all_15625_rows_of_the_benchmark(data_folder):
    """The benchmark counts every edge, dead ones too; its MACs have 10 more, the biases of the classifier, and are float32."""
    table = np.load(data_folder / "nb201_accuracy.npz", allow_pickle=False)
    ones, threes = (table["codes"] == 2).sum(1), (table["codes"] == 3).sum(1)
    assert np.array_equal(table["params"], AROUND[0] + ones * CONV1[0] + threes * CONV3[0])
    macs = (AROUND[1] + 10 + ones * CONV1[1] + threes * CONV3[1]).astype(np.float64)
    assert (np.abs(table["flops_cifar10"] - macs) <= np.spacing(macs.astype(np.float32))).all()


def test_nasbench201_against_its_table(data_folder):
    table = np.load(data_folder / "nb201_accuracy.npz", allow_pickle=False)
    space = make_space("nasbench201")
    whole = 0
    for row in np.random.default_rng(0).choice(len(table["codes"]), 250, replace=False):
        code = tuple(int(v) for v in table["codes"][row])
        arch = space.decode(code)
        pairs = [op_macs_params(arch.placed(node)) for node in arch.nodes]  # with the dead branches
        assert sum(p for _, p in pairs) == table["params"][row]
        macs = sum(m for m, _ in pairs) + 10
        assert abs(macs - float(table["flops_cifar10"][row])) <= np.spacing(np.float32(macs))
        ones, threes = live_convs(code)
        found = cost(arch)
        assert found.params == AROUND[0] + ones * CONV1[0] + threes * CONV3[0]
        assert found.macs == AROUND[1] + ones * CONV1[1] + threes * CONV3[1]
        if (ones, threes) == (code.count(2), code.count(3)):
            whole += 1
            assert found.params == table["params"][row]
    assert whole > 100  # most cells have no dead branch


def test_all_disconnected_cells_cost_the_same():
    """No path from the first to the last node: 341 cells, of which those whose last node is empty need no cell at all."""
    space = make_space("nasbench201")
    for code in ((0,) * 6, (3, 0, 0, 0, 0, 0), (3, 3, 3, 0, 0, 0), (0, 0, 4, 0, 1, 0), (0, 0, 1, 0, 0, 4)):
        assert live_convs(code) == (0, 0)
        assert (cost(space.decode(code)).params, cost(space.decode(code)).macs) == AROUND


def memory_by_hand(arch: Arch) -> int:
    """The largest sum of the buffers that hold something still to be read, step by step, with reference counts."""
    steps: list[tuple[object, list[str], str, int]] = []  # prim, inputs, output, bytes of the output
    where = {"x": "x"}
    size = {"x": arch.input.bytes}
    for node in arch.nodes:
        graph = arch.placed(node).graph
        local = [where[i] for i in node.inputs]
        for number, step in enumerate(graph.steps):
            name = f"{node.name}#{number}"
            size[name] = prod(graph.specs[len(local)].dims) * 4
            steps.append((step.prim, [local[i] for i in step.inputs], name, size[name]))
            local.append(name)
        where[node.name] = local[graph.output]
    output = where[arch.output]

    def needed_later(value: str, after: int) -> bool:
        return value == output or any(value in inputs for _, inputs, _, _ in steps[after + 1 :])

    buffers = {"x": size["x"]}  # buffer -> bytes
    holds = {"x": "x"}  # value -> buffer
    peak = size["x"]
    for number, (prim, inputs, name, count) in enumerate(steps):
        if isinstance(prim, BatchNorm | Activation | Flatten) and not needed_later(inputs[0], number):
            holds[name] = holds.pop(inputs[0])
        else:
            buffers[name] = count
            holds[name] = name
        peak = max(peak, sum(buffers.values()))
        for value in list(holds):
            if not needed_later(value, number):
                del buffers[holds.pop(value)]
    return peak


def test_peak_memory_of_random_networks(random_dag):
    seen = set()
    for seed in range(120):
        arch = simplify(random_dag(seed))
        assert cost(arch).peak_bytes == memory_by_hand(arch)
        seen.add(cost(arch).peak_bytes)
    assert len(seen) > 10


@pytest.mark.parametrize(
    "text", ["mobilenet(input=(3, 32, 32), se=True)", "nasbench201(cells=1)", "darts(cells=3, channels=4)", "chain"]
)
def test_peak_memory_of_spaces(text):
    import random

    space = make_space(text)
    rng = random.Random(0)
    for _ in range(3):
        arch = simplify(space.decode(space.sample(rng)))
        assert cost(arch).peak_bytes == memory_by_hand(arch)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # x 3*8*8, y 4*8*8: both live while the convolution runs; batch norm and ReLU write over y
        ("a = conv_bn(x, out=4)", Cost(macs=4 * 8 * 8 * 27, params=4 * 27 + 8, peak_bytes=4 * (3 + 4) * 64)),
        # x lives until the sum: x, a and the sum
        ("a = conv_bn(x, out=3)\nb = sum(a, x)", Cost(3 * 64 * 27, 3 * 27 + 6, 4 * 9 * 64)),
        # flatten costs nothing; pool's 3 values and 5 logits are less than x and the pool's output
        ("a = classifier(x, classes=5)", Cost(15, 20, 4 * (192 + 3))),
        # 192 inputs to 1000 units
        ("a = dense(x, out=1000)", Cost(192_000, 193_000, 4 * 1192)),
    ],
)
def test_by_hand(lines, expected):
    last = lines.split("\n")[-1].split(" = ")[0]
    assert cost(read_arch(f"x = input(3, 8, 8)\n{lines}\noutput({last})\n")) == expected


def test_features_count_what_runs():
    arch = read_arch(
        "x = input(2, 4, 4)\na = conv_bn(x, out=2)\ni = identity(a)\nb = conv_bn(i, out=2)\ndead = conv_bn(x, out=9)\n"
        "c = pool(b, kind='max', stride=2)\noutput(c)\n"
    )
    found = features(arch)
    conv = PlacedOp(arch.nodes[0].op, (arch.input,))
    assert {str(p): n for p, n in found.ops.items()} == {str(conv): 2, "pool(kind='max', stride=2) @ float32[2,4,4]": 1}
    assert found.count == 3
    assert found.macs == 2 * 2 * 16 * 18
    assert found.weight_bytes == 4 * 2 * (36 + 4)
    assert found.boundary_elements == 32 + 32 + 8
