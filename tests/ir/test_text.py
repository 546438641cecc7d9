"""Archs as text: what is printed is read back, and what cannot be read is refused in one line that names the line."""

from __future__ import annotations

import string
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.ir.arch import Arch, Node
from hwnas.ir.tensor import TensorSpec
from hwnas.ir.text import print_arch
from hwnas.ops import read_arch
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.mbconv import MbConv

GOOD = """x = input(3, 32, 32)
stem = conv_bn(x, out=16, kernel=3)
stage1.layer1 = mbconv(stem, out=24, kernel=5, expand=6)
head = classifier(stage1.layer1, classes=10)
output(head)
"""


def test_the_example_of_the_module():
    arch = read_arch(GOOD)
    assert arch.input == TensorSpec((3, 32, 32))
    assert [n.name for n in arch.nodes] == ["stem", "stage1.layer1", "head"]
    assert arch.nodes[0].op == ConvBn(16)
    assert arch.nodes[1] == Node("stage1.layer1", MbConv(24, 5, 6), ("stem",))
    assert arch.output == "head"
    assert read_arch(print_arch(arch)) == arch


def test_comments_blank_lines_and_spaces_are_free():
    loose = "\n  # a network\n\n" + GOOD.replace("\n", "\n\n").replace(" = ", "=").replace(", ", " ,  ") + "\n# end"
    assert read_arch(loose) == read_arch(GOOD)


def test_defaults_are_left_out_and_dtype_is_kept():
    arch = Arch(TensorSpec((3, 4, 4), "float16"), (Node("a", ConvBn(8, 3, 1, "relu"), ("x",)),), "a")
    assert print_arch(arch) == "x = input(3, 4, 4, dtype='float16')\na = conv_bn(x, out=8)\noutput(a)\n"
    assert read_arch(print_arch(arch)) == arch


def test_random_networks_round_trip(random_dag):
    for seed in range(60):
        arch = random_dag(seed)
        assert read_arch(print_arch(arch)) == arch


BAD = [
    (1, "input(3, 8, 8)"),  # no name
    (1, "y = input(3, 8, 8)"),  # the input is called x
    (1, "x = input()"),
    (1, "x = input(3, 0, 8)"),
    (1, "x = input(3, -1, 8)"),
    (1, "x = input(3.5, 8)"),
    (1, "x = input(a, 8)"),
    (1, "x = input(3, 8, 8, dtype='complex')"),
    (1, "x = input(3, 8, 8, size=3)"),
    (1, "x = input(3, 8, 8"),
    (1, "x = 3"),
    (1, "x: int = input(3, 8, 8)"),
    (1, "import os"),
    (1, "x = y = input(3, 8, 8)"),
    (1, "x, y = input(3, 8, 8)"),
    (1, "x = input(3, 8, 8); import os"),
    (2, "x = input(3, 8, 8)"),  # twice
    (2, "a = conv_bn(x, out=__import__('os').getpid())"),
    (2, "a = conv_bn(x, out=2 + 2)"),
    (2, "a = conv_bn(x, out=10 ** 5)"),
    (2, "a = conv_bn(x, out=y)"),
    (2, "a = conv_bn(x, out=f'{1}')"),
    (2, "a = conv_bn(x, out=[1 for _ in 'a'])"),
    (2, "a = conv_bn(x, **{'out': 3})"),
    (2, "a = conv_bn(*x, out=3)"),
    (2, "a = conv_bn((lambda: x)(), out=3)"),
    (2, "a = conv_bn(x)"),  # out is missing
    (2, "a = conv_bn(x, out=3, size=3)"),  # no such argument
    (2, "a = conv_bn(x, out=3, out=4)"),
    (2, "a = conv_bm(x, out=3)"),  # no such op
    (2, "a = __import__('os')"),
    (2, "a = __import__('os').system('true')"),
    (2, "a = conv_bn(x, out=3"),
    (2, "a conv_bn(x)"),
    (2, "a = (conv_bn)(x, out=3)(x)"),
    (2, "a[0] = conv_bn(x, out=3)"),
    (2, "conv_bn(x, out=3)"),  # no name
    (2, "a = conv_bn(x, out=3) if x else x"),
    (2, "a = conv_bn(x := x, out=3)"),
    (2, "\x00"),
    (2, "a = conv_bn(x, out='\ud800')"),
    (3, "output(a); output(a)"),
    (3, "output()"),
    (3, "output(a, a)"),
    (3, "output(a, n=1)"),
    (3, "output(b)"),
    (3, "output('a', 'b')"),
    (3, "output(a)\noutput(a)"),  # output comes last
    (3, "output(a)\nb = conv_bn(a, out=3)"),
]


@pytest.mark.parametrize(("number", "line"), BAD, ids=[f"{i}-{n}" for i, (n, _) in enumerate(BAD)])
def test_a_bad_line_is_named(number, line):
    lines = ["x = input(3, 8, 8)", "a = conv_bn(x, out=3)", "output(a)"]
    lines[number - 1] = line
    with pytest.raises(UserError) as caught:
        read_arch("\n".join(lines))
    message = str(caught.value)
    assert "\n" not in message
    assert f"line {number} " in message


@pytest.mark.parametrize(
    "node",
    [
        "conv_bn(x, out=0)",
        "conv_bn(x, out=-3)",
        "conv_bn(x, out=1.5)",
        "conv_bn(x, out='a')",
        "conv_bn(x, out=[8])",
        "conv_bn(x, out=None)",
        "conv_bn(y, out=8)",
        "conv_bn(x, out=8, act='foo')",
        "conv_bn(x, out=8, stride=0)",
        "conv_bn(x, out=8, stride=-1)",
        "conv_bn(x, out=8, kernel=0)",
        "conv_bn(x, out=8, kernel=-1)",
        "conv_bn(x, out=8, kernel=40, stride=99.5)",
        "zero(x, stride=0)",
        "pool(x, kind='max', stride=0)",
        "pool(x, kind='median')",
        "pool(x, kind='max', kernel=0)",
        "mbconv(x, out=8, expand=0)",
        "identity(x, x)",
        "classifier(x, classes=0)",
        "dense(x, out=-1)",
    ],
)
def test_arguments_that_no_network_has_are_refused(node):
    with pytest.raises(UserError) as caught:
        read_arch(f"x = input(3, 8, 8)\na = {node}\noutput(a)\n")
    assert "\n" not in str(caught.value)
    assert "line " in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# nothing", "x = input(3, 8, 8)\n", "x = input(3, 8, 8)\na = conv_bn(x, out=3)\n", "output(x)"]
)
def test_an_arch_needs_an_input_and_an_output(text):
    with pytest.raises(UserError):
        read_arch(text)


@pytest.mark.parametrize("nested", ["-" * 3000 + "1", "(" * 3000 + "1", "[" * 3000 + "]" * 3000, "1" + "+1" * 3000])
def test_deep_nesting_is_refused(nested):
    with pytest.raises(UserError):
        read_arch(f"x = input(3, 8, 8)\na = conv_bn(x, out={nested})\noutput(a)\n")


def test_nothing_is_evaluated(tmp_path, monkeypatch):
    """Reading an arch imports ops of the package and nothing that the text calls."""
    witness = tmp_path / "witness"
    (tmp_path / "hwnas_test_side_effect.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for call in (f"open({str(witness)!r}, 'w')", "__import__('hwnas_test_side_effect')", "hwnas_test_side_effect"):
        for line in (f"a = conv_bn(x, out={call})", f"a = conv_bn({call}, out=3)", f"a = {call}"):
            with pytest.raises(UserError):
                read_arch(f"x = input(3, 8, 8)\n{line}\noutput(a)\n")
    assert not witness.exists()
    assert "hwnas_test_side_effect" not in sys.modules


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_text_is_read_or_refused_and_nothing_else(data):
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 6))
        text = text[:at] + data.draw(st.text(string.printable, max_size=4)) + text[at + cut :]
    arch, message = None, ""
    try:
        arch = read_arch(text)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert arch is None or read_arch(print_arch(arch)) == arch
