"""One file per op, named after it. An op outside the package is named by the dotted path of its module."""

from __future__ import annotations

import inspect
import sys

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
    """The arch that `print_arch` printed, its ops found by name.

    Text may come from anywhere, so it imports nothing: an op outside the package counts only if its module is imported already.
    """
    return parse_arch(text, _imported_op_class)


def _imported_op_class(name: str) -> type[Op]:
    if "." in name and name not in sys.modules:
        raise UserError(
            "an op outside the package must be imported before it is read", got=name, remedy="name it with --plugin"
        )
    return op_class(name)
