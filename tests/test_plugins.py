"""Plug-ins by file name and by dotted path, and the text in which they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import UserError
from hwnas.ir.text import print_arch
from hwnas.ops import op_class, read_arch
from hwnas.plugins import known, load, parse_call
from hwnas.spaces import make_space

PACKAGE = Path(__file__).parent.parent / "hwnas"


@pytest.mark.parametrize("package", ["spaces", "ops", "latency.predictors"])
def test_the_folder_is_the_registry(package):
    folder = PACKAGE / package.replace(".", "/")
    assert known(f"hwnas.{package}") == sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    for name in known(f"hwnas.{package}"):
        assert load(f"hwnas.{package}", name, "thing").__name__ == f"hwnas.{package}.{name}"


def test_an_unknown_name_comes_with_the_nearest_and_all_known():
    with pytest.raises(UserError) as caught:
        load("hwnas.spaces", "mobilnet", "space")
    message = str(caught.value)
    assert "did you mean mobilenet?" in message
    assert all(name in message for name in known("hwnas.spaces"))
    with pytest.raises(UserError) as caught:
        load("hwnas.spaces", "zzz", "space")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".darts",
        "darts.",
        "a..b",
        "hwnas.spaces.nosuch",
        "no such",
        "../darts",
        "darts.py",
        "hwnas.spaces.darts.x",
        "_private",
        "a/b",
        "é",
    ],
)
def test_names_that_are_no_module(name):
    with pytest.raises(UserError):
        load("hwnas.spaces", name, "space")


OP = """from dataclasses import dataclass
from hwnas.ir.op import Op
from hwnas.ir.prims import Activation

@dataclass(frozen=True)
class Half(Op):
    kind: str = "tanh"
    def build(self, g, *xs):
        return g.add(Activation(self.kind), *xs)
"""
SPACE = """from hwnas.space import Choice, Slot, Space
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.identity import Identity
from hwnas_outside.half import Half

def space(classes=2, wide=False):
    slot = Slot("s", ("c",), (Identity(), Half()), ("x",))
    return Space("outside", TensorSpec((classes,)), (Choice("c", ("no", "yes")),), (slot,), "s")
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package that is not part of hwnas."""
    folder = tmp_path / "hwnas_outside"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "half": OP,
        "mine": SPACE,
        "none": "",
        "two": OP + OP.replace("Half", "Other"),
        "broken": "import hwnas_nosuch_module\n",
        "wrong": "def space():\n    return 3\n",
        "fails": "raise RuntimeError('at import')\n",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "hwnas_outside"
    for name in [n for n in sys.modules if n.startswith("hwnas_outside")]:
        del sys.modules[name]


def test_an_op_and_a_space_from_outside(outside):
    space = make_space(f"{outside}.mine(classes=3)")
    arch = space.decode((1,))
    assert arch.nodes[0].op == op_class(f"{outside}.half")()
    assert print_arch(arch) == f"x = input(3)\ns = {outside}.half(x)\noutput(s)\n"
    assert read_arch(print_arch(arch)) == arch


def test_plugins_from_outside_that_do_not_keep_the_contract(outside):
    for name in ("none", "two"):
        with pytest.raises(UserError, match="exactly one Op"):
            op_class(f"{outside}.{name}")
    with pytest.raises(UserError, match="must return a Space"):
        make_space(f"{outside}.wrong")
    with pytest.raises(UserError, match="no argument 'size'"):
        make_space(f"{outside}.mine(size=3)")
    with pytest.raises(UserError):
        make_space(f"{outside}.none")  # a module without a space


def test_what_is_missing_inside_a_plugin_is_not_hidden(outside):
    with pytest.raises(ModuleNotFoundError, match="hwnas_nosuch_module"):
        load("hwnas.spaces", f"{outside}.broken", "space")
    with pytest.raises(RuntimeError, match="at import"):
        load("hwnas.spaces", f"{outside}.fails", "space")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("darts", ("darts", {})),
        (" darts ( ) ", ("darts", {})),
        ("a.b.c(d=1)", ("a.b.c", {"d": 1})),
        (
            "s(a=(1, 2.5, -3), b='x', c=None, d=[True], e={'k': 1})",
            ("s", {"a": (1, 2.5, -3), "b": "x", "c": None, "d": [True], "e": {"k": 1}}),
        ),
    ],
)
def test_calls(text, expected):
    assert parse_call(text, "space") == expected


LITERALS = st.recursive(
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{3,8}_", fullmatch=True), LITERALS, max_size=4))
def test_any_literal_arguments_come_back(arguments):
    text = f"name({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    assert parse_call(text, "space") == ("name", arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        "a(",
        "a(1)",
        "a(b)",
        "a(b=c)",
        "a(b=1+1)",
        "a(b=__import__('os'))",
        "__import__('os')",
        "a(**{})",
        "a(*[])",
        "a()()",
        "a[0]",
        "a.b()[0]",
        "a=1",
        "a; b",
        "a\nb",
        "a(b=1)(c=2)",
        "lambda: 0",
        "(a)()()",
        "'a'",
        "3",
        "a(b=[x for x in 'a'])",
        "a(b=1, b=2)",
        "\x00",
        "a(b=" + "-" * 3000 + "1)",
        "a(b=" + "[" * 500 + "]" * 500 + ")",
        "mobilenet(" + "(" * 3000,
    ],
)
def test_what_is_no_call_is_refused_and_never_evaluated(text):
    with pytest.raises(UserError) as caught:
        parse_call(text, "space")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_call_or_refused(text):
    name, arguments, message = "refused", {}, ""
    try:
        name, arguments = parse_call(text, "space")
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert name
    assert isinstance(arguments, dict)
