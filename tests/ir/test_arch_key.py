"""Arch.key against brute force: two networks have one key exactly if some renaming of nodes makes one the other."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

import pytest

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.ops import read_arch
from hwnas.ops.concat import Concat
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.relu_conv_bn import ReluConvBn
from hwnas.ops.sum import Sum

IMAGE = TensorSpec((2, 4, 4))


def reached(arch: Arch) -> dict[str, Node]:
    by_name = {n.name: n for n in arch.nodes}
    found: dict[str, Node] = {}
    stack = [arch.output]
    while stack:
        name = stack.pop()
        if name in by_name and name not in found:
            found[name] = by_name[name]
            stack.extend(by_name[name].inputs)
    return found


def isomorphic(a: Arch, b: Arch) -> bool:
    """By trying every bijection of the nodes that the outputs need."""
    left, right = reached(a), reached(b)
    if len(left) != len(right) or a.input != b.input:
        return False
    for order in permutations(right):
        names = {"x": "x", **dict(zip(left, order, strict=True))}
        same = names[a.output] == b.output
        for name, node in left.items():
            other = right[names[name]]
            mapped = [names[i] for i in node.inputs]
            if isinstance(node.op, Sum):
                same = same and Counter(mapped) == Counter(other.inputs)
            else:
                same = same and tuple(mapped) == other.inputs
            same = same and node.op == other.op
        if same:
            return True
    return False


def small(rng: random.Random, nodes: int) -> Arch:
    names, made = ["x"], []
    for i in range(nodes):
        op = rng.choice((Sum(), Sum(), ConvBn(2), ConvBn(2, 1)))
        count = rng.choice((2, 2, 3)) if isinstance(op, Sum) else 1
        made.append(Node(f"n{i}", op, tuple(rng.choice(names) for _ in range(count))))
        names.append(f"n{i}")
    return Arch(IMAGE, tuple(made), names[-1])


def shuffled(arch: Arch, rng: random.Random) -> Arch:
    names = dict(
        zip([n.name for n in arch.nodes], rng.sample([f"m{i}" for i in range(len(arch.nodes))], len(arch.nodes)), strict=True)
    )
    names["x"] = "x"
    waiting, ready, done = list(arch.nodes), {"x"}, []
    while waiting:
        node = rng.choice([n for n in waiting if set(n.inputs) <= ready])
        inputs = rng.sample(node.inputs, len(node.inputs)) if isinstance(node.op, Sum) else node.inputs
        done.append(Node(names[node.name], node.op, tuple(names[i] for i in inputs)))
        ready.add(node.name)
        waiting.remove(node)
    return Arch(arch.input, tuple(done), names[arch.output])


def test_other_spellings_have_the_same_key():
    rng = random.Random(0)
    for _ in range(300):
        arch = small(rng, rng.randint(1, 6))
        other = shuffled(arch, rng)
        assert other.key == arch.key, f"{arch}\n{other}"


def test_one_key_exactly_if_isomorphic():
    """Networks of one size, each against the next: a few hundred pairs, of which both kinds occur often."""
    rng = random.Random(1)
    kinds: Counter[bool] = Counter()
    for nodes, count in ((2, 60), (3, 60), (4, 60)):
        archs = [small(rng, nodes) for _ in range(count)]
        for i, a in enumerate(archs):
            for b in archs[i + 1 : i + 16]:
                same = isomorphic(a, b)
                kinds[same] += 1
                assert (a.key == b.key) == same, f"{a}\n{b}"
    assert kinds[True] > 20
    assert kinds[False] > 20


def test_equal_terms_of_which_one_is_used_again():
    """Two equal convolutions are told apart by what else reads them, in whichever order the sum names them."""
    text = (
        "x = input(2, 4, 4)\na = conv_bn(x, out=2)\nb = conv_bn(x, out=2)\ns = sum({})\nc = conv_bn(a, out=2)\n"
        "o = sum({})\noutput(o)\n"
    )
    keys = {read_arch(text.format(inner, outer)).key for inner in ("a, b", "b, a") for outer in ("c, s", "s, c")}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("left", "right"),
    [
        # a node used twice is not two equal nodes
        (
            (Node("a", ConvBn(2), ("x",)), Node("s", Sum(), ("a", "a"))),
            (Node("a", ConvBn(2), ("x",)), Node("b", ConvBn(2), ("x",)), Node("s", Sum(), ("a", "b"))),
        ),
        # the order of a concat's inputs matters
        (
            (Node("a", ConvBn(2), ("x",)), Node("b", ConvBn(2, 1), ("x",)), Node("s", Concat(), ("a", "b"))),
            (Node("a", ConvBn(2), ("x",)), Node("b", ConvBn(2, 1), ("x",)), Node("s", Concat(), ("b", "a"))),
        ),
        # ops of one shape and cost
        ((Node("s", ConvBn(2, act="relu"), ("x",)),), (Node("s", ConvBn(2, act="relu6"), ("x",)),)),
        ((Node("s", ConvBn(2, act="relu"), ("x",)),), (Node("s", ReluConvBn(2, 3), ("x",)),)),
        # the number of terms
        ((Node("s", Sum(), ("x", "x")),), (Node("s", Sum(), ("x", "x", "x")),)),
    ],
)
def test_different_networks_have_different_keys(left, right):
    assert Arch(IMAGE, left, "s").key != Arch(IMAGE, right, "s").key


def test_the_input_and_the_output_belong_to_the_key():
    nodes = (Node("a", ConvBn(2), ("x",)), Node("b", ConvBn(2), ("a",)))
    assert Arch(IMAGE, nodes, "a").key != Arch(IMAGE, nodes, "b").key
    assert Arch(IMAGE, nodes, "a").key == Arch(IMAGE, nodes[:1], "a").key  # what is not needed does not count
    assert Arch(IMAGE, nodes, "b").key != Arch(TensorSpec((2, 4, 5)), nodes, "b").key
    assert Arch(IMAGE, (), "x").key != Arch(IMAGE, nodes, "a").key


@pytest.mark.parametrize(
    ("nodes", "output"),
    [
        ((Node("a", ConvBn(2), ("y",)),), "a"),  # an input that nobody defined
        ((Node("a", ConvBn(2), ("b",)), Node("b", ConvBn(2), ("x",))), "a"),  # not in order
        ((Node("a", ConvBn(2), ("a",)),), "a"),  # a loop
        ((Node("a", ConvBn(2), ("x",)), Node("a", ConvBn(2), ("x",))), "a"),  # a name twice
        ((Node("x", ConvBn(2), ("x",)),), "x"),  # the input's name
        ((Node("a b", ConvBn(2), ("x",)),), "a b"),
        ((Node("", ConvBn(2), ("x",)),), ""),
        ((Node("a.", ConvBn(2), ("x",)),), "a."),
        ((Node("a", ConvBn(2), ()),), "a"),  # no input
        ((Node("a", ConvBn(2), ("x",)),), "b"),  # an output that nobody defined
        ((Node("a", ConvBn(0), ("x",)),), "a"),
        ((Node("a", ConvBn(2, 9, 1), ("x",)), Node("b", Sum(), ("a", "x"))), "c"),
        ((Node("a", ConvBn(3), ("x",)), Node("b", Sum(), ("a", "x"))), "b"),  # shapes differ
        ((Node("a", ConvBn(2), ("x", "x")),), "a"),  # one input too many
    ],
)
def test_an_arch_is_checked_at_birth(nodes, output):
    with pytest.raises(UserError) as caught:
        Arch(IMAGE, nodes, output)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["bn_relu(x, x)", "relu_conv_bn(x, x, out=2)", "dil_conv(x, x, out=2, kernel=3)", "mbconv(x, x, out=2)"]
)
def test_ops_of_one_input_refuse_two(text):
    """Else the second is silently dropped, and the ONNX model is invalid."""
    with pytest.raises(UserError):
        read_arch(f"x = input(2, 4, 4)\na = {text}\noutput(a)\n")
