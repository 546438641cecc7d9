"""What commands share: consoles, options, and how files and sizes are read. Heavy libraries stay inside the commands."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from hwnas.errors import UserError

out_console, err_console = Console(), Console(stderr=True)

SpaceText = Annotated[str, typer.Option("--space", help="Search space: name, or name(argument=value, ...).")]
DeviceName = Annotated[str, typer.Option("--device", help="Device: see hwnas devices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Plugins = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads annotations at run time on Python 3.10)
    typer.Option("--plugin", help="Module of an op outside the package; may be repeated."),
]


def import_plugins(plugins: list[str] | None) -> None:
    """Imports modules that define ops outside the package."""
    for name in plugins or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError("a plugin must be a module that can be imported", got=name, remedy=str(error)) from None


def print_json(values: Any) -> None:
    """One JSON object on stdout."""
    print(json.dumps(values))


def read_bytes(path: Path) -> bytes:
    """A file's content. UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError("the file cannot be read", got=str(path), remedy=error.strerror or "") from None


def read_dims(text: str) -> tuple[int, ...]:
    """`3,32,32` as numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError("an input size is numbers with commas", got=text, remedy="write 3,32,32") from None
