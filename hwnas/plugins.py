"""Plug-ins by file name: `spaces/darts.py` is the space `darts`. A dotted path names a module outside the package.

Also reads the text `name(key=value, ...)`, with which a plug-in and its arguments are named in one string. Values are Python
literals; nothing is evaluated.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any

from hwnas.errors import UserError

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def known(package: str) -> list[str]:
    """Names of the plug-ins that a package holds."""
    return sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__) if m.name[0] != "_")


def load(package: str, name: str, kind: str) -> ModuleType:
    """The plug-in `name` of `package`, or the module at the dotted path `name`.

    Raises UserError with the known names if there is none.
    """
    names = known(package)
    if not _DOTTED.fullmatch(name):
        raise UserError(f"a {kind} is named by words with dots between them", got=name, remedy=f"known: {', '.join(names)}")
    if name in names:
        return importlib.import_module(f"{package}.{name}")
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the plug-in exists; something that it imports does not
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown {kind}", got=name, remedy=f"{hint}known: {', '.join(names)}, or the dotted path of a module")


def parse_call(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """`name` or `name(key=literal, ...)` as a name and its arguments."""
    remedy = f"write the {kind} as name or name(key=value, ...) with literal values"
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        arguments: dict[str, Any] = {}
        if isinstance(expression, ast.Call):
            if expression.args:
                raise ValueError("arguments without names")
            arguments = literal_keywords(expression)
            expression = expression.func
        return dotted(expression), arguments
    except UNREADABLE:
        raise UserError(f"a {kind} must be readable", got=text, remedy=remedy) from None


# What Python's parser and literal_eval raise for text that is no literal, or that nests too deeply.
UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def literal_keywords(call: ast.Call) -> dict[str, Any]:
    """The keyword arguments of a call, which must be literals, each named once; ValueError if they are not."""
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError(f"argument {keyword.arg} is given twice" if keyword.arg else "arguments without names")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return arguments


def dotted(expression: ast.expr) -> str:
    """`a.b.c` from its syntax tree; ValueError if it is anything else."""
    if isinstance(expression, ast.Name):
        return expression.id
    if isinstance(expression, ast.Attribute):
        return f"{dotted(expression.value)}.{expression.attr}"
    raise ValueError("not a dotted name")
