"""The command line. A file in `cli/commands` is a command; it imports heavy libraries itself, so that help is quick."""

from __future__ import annotations

import importlib
import sys

import typer

from hwnas.cli.options import err_console
from hwnas.errors import UserError
from hwnas.plugins import known

app = typer.Typer(
    help="Hardware-aware architecture search: a space, a device and a budget in; a trained, measured ONNX model out.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
INTERRUPTED = 130  # what typer makes of Ctrl-C

for _name in known("hwnas.cli.commands"):
    app.command()(getattr(importlib.import_module(f"hwnas.cli.commands.{_name}"), _name))


def main() -> None:
    """Runs the command line; what a user can mend is one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        err_console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            err_console.print("interrupted; what was done is kept: run the same command again, search with --resume")
        raise
