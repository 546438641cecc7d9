"""One file per op, named after it. An op outside the package is named by the dotted path of its module."""

from __future__ import annotations

import inspect

from hwnas.errors import UserError
from hwnas.ir.arch import Arch
from hwnas.ir.op import Op
from hwnas.ir.text import parse_arch
from hwnas.plugins import load


def op_class(name: str) -> type[Op]:
    """The one Op that the module `name` defines."""
    module = load("hwnas.ops", name, "op")
    own = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Op) and c.__module__ == module.__name__]
    if len(own) != 1:
        raise UserError("an op's module defines exactly one Op", got=f"{len(own)} in {module.__name__}")
    return own[0]


def read_arch(text: str) -> Arch:
    """The arch that `print_arch` printed, its ops found by name."""
    return parse_arch(text, op_class)
