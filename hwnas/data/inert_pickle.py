"""Reads the pickles that CIFAR's python batches are, without unpickling.

A pickle is a program: `pickle.load` imports and calls whatever the file names, so opening a downloaded batch would run
code of whoever wrote it. Here `pickletools.genops` only splits the file into opcodes, and a small interpreter runs the
inert ones: numbers, strings, lists, dicts, tuples and the memo. A batch also holds numpy arrays, which are spelled as
calls of four symbols. No symbol is ever imported: its name is compared with a list, and our own code makes the array.
Everything else is refused.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import UserError

MAX_PROTOCOL = 4
NUMBER_OPCODES = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"})
STRING_OPCODES = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"})
TEXT_OPCODES = frozenset({"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
PUSHES = NUMBER_OPCODES | STRING_OPCODES | TEXT_OPCODES  # their decoded argument is the value
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")  # of numpy 1 and 2
BYTES = ("__builtin__.bytes", "builtins.bytes")
SYMBOLS = frozenset({*RECONSTRUCT, *BYTES, "numpy.ndarray", "numpy.dtype", "_codecs.encode"})
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
NUMBERS = re.compile(r"[uif][1248]|b1")  # the dtypes that are numbers; object arrays are pickles again


class _Symbol:
    """A name that the file would have imported. It stays a name."""

    def __init__(self, module: object, name: object) -> None:
        self.text = f"{module}.{name}"
        if self.text not in SYMBOLS:
            raise _ForeignError(f"the symbol {self.text}")


class _Made:
    """A dtype or an array. The file makes it in two steps, and the memo may hold it from the first on."""

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind = kind
        self.value = value


class _ForeignError(Exception):
    """The file asks for what is not inert. The text says for what."""


def read_inert_pickle(path: Path) -> dict[str, Any]:
    """The dict in the file, its keys as str, its values numbers, strings, bytes, lists, dicts, tuples or arrays."""
    try:
        value = _run(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not a dict")
        return {_text(key): item.value if isinstance(item, _Made) else item for key, item in value.items()}
    except _ForeignError as error:
        remedy = "nothing was run; get the file from its publisher"
        rule = f"{path} must hold numbers, strings and arrays only"
        raise UserError(rule, got=str(error), remedy=remedy) from error
    except Exception as error:  # any opcode can meet any stack in a damaged file
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is corrupt", got=reason, remedy="fetch it again") from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the open marks
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        if name in PUSHES:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("LIST", "TUPLE", "DICT"):
            items, stack = stack, below.pop()
            stack.append(items if name == "LIST" else tuple(items) if name == "TUPLE" else _pairs(items))
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
            _extend(stack[-1], items) if name == "APPENDS" else _update(stack[-1], items)
        elif name == "APPEND":
            _extend(stack[-2], [stack.pop()])
        elif name == "SETITEM":
            items = stack[-2:]
            del stack[-2:]
            _update(stack[-1], items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            length = int(name[-1])
            if len(stack) < length:
                raise ValueError("a tuple lacks items")
            stack[-length:] = [tuple(stack[-length:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "GLOBAL":
            stack.append(_Symbol(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            symbol = stack.pop()
            stack.append(_Symbol(stack.pop(), symbol))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_reduce(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name == "PROTO":
            if arg > MAX_PROTOCOL:
                raise _ForeignError(f"pickle protocol {arg}")
        elif name != "FRAME":
            raise _ForeignError(f"opcode {name}")
    raise ValueError("it has no end")


def _reduce(symbol: Any, arguments: Any) -> Any:
    """The value of a call, for the four calls that numpy's arrays and, before protocol 3, bytes are written with."""
    if not isinstance(symbol, _Symbol):
        raise ValueError("it calls what is not a name")
    match symbol.text, arguments:
        case text, (_Symbol(text="numpy.ndarray"), _, _) if text in RECONSTRUCT:
            return _Made("array")
        case "numpy.dtype", (str() | bytes() as code, *_):
            if not NUMBERS.fullmatch(_text(code)):
                raise _ForeignError(f"an array of dtype {_text(code)}")
            return _Made("dtype", np.dtype(_text(code)))
        case "_codecs.encode", (str() as text, str() | bytes() as encoding) if _text(encoding) in ("latin1", "latin-1"):
            return text.encode("latin-1")
        case text, () if text in BYTES:
            return b""
    raise _ForeignError(f"an unknown call of {symbol.text}")


def _build(target: Any, state: Any) -> None:
    """The second step of a dtype, which brings its byte order, and of an array, which brings shape and bytes."""
    match target, state:
        case _Made(kind="dtype"), (int(), str() | bytes() as order, *_) if _text(order) in ("<", ">", "|", "="):
            target.value = target.value.newbyteorder(_text(order))
        case _Made(kind="array"), (int(), shape, _Made(kind="dtype", value=dtype), by_columns, str() | bytes() as raw):
            values = np.frombuffer(raw.encode("latin-1") if isinstance(raw, str) else raw, dtype)
            values = values.reshape(shape, order="F" if by_columns else "C")
            target.value = values.astype(values.dtype.newbyteorder("="))
        case _:
            raise _ForeignError("the state of an unknown object")


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise _ForeignError("items of an unknown list")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise _ForeignError("items of an unknown dict")
    target.update(_pairs(items))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key has no value")
    return dict(zip(items[::2], items[1::2], strict=True))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no name")
