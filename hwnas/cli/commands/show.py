"""`hwnas show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.options import AsJson, Plugins, import_plugins, out_console, print_json, read_bytes


def show(
    what: Annotated[str, typer.Argument(help="An arch's text file, a run folder, or an ONNX file that hwnas wrote.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Shows an architecture node by node with its cost, and a run with its answer."""
    from dataclasses import asdict

    from hwnas.ir.simplify import simplify
    from hwnas.ir.text import print_arch
    from hwnas.lower.cost import cost
    from hwnas.lower.onnx import arch_text
    from hwnas.ops import read_arch
    from hwnas.report.run import RunFolder, read_text
    from hwnas.report.tables import arch_table, report_lines
    from hwnas.search.budget import describe

    import_plugins(plugin)
    path = Path(what)
    report = RunFolder(path).read_report() if path.is_dir() else None
    if report:
        text = read_text(RunFolder(path).arch)
    elif path.suffix == ".onnx":
        text = arch_text(read_bytes(path))
    else:
        text = read_bytes(path).decode(errors="replace")
    arch = simplify(read_arch(text))
    found = cost(arch)
    if as_json:
        print_json(
            {"key": arch.key, "arch": print_arch(arch), **asdict(found), "report": report.model_dump() if report else None}
        )
        return
    out_console.print(arch_table(f"{what}: {arch.key}", arch))
    out_console.print(
        f"{describe('macs', found.macs)}, {describe('params', found.params)}, peak activations"
        f" {describe('peak_bytes', found.peak_bytes)}", highlight=False,
    )  # fmt: skip
    for line in report_lines(report) if report else ():
        out_console.print(line, highlight=False, soft_wrap=True)
