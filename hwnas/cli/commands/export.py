"""`hwnas export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, Plugins, import_plugins, out_console, print_json, read_bytes


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    batch: Annotated[Optional[int], typer.Option(min=1, help="Fixed batch size. Default: symbolic.")] = None,  # noqa: UP045
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Writes a finished run's network as ONNX, from its arch and weights."""
    from hwnas.errors import UserError
    from hwnas.lower.onnx import read_metadata, to_onnx
    from hwnas.ops import read_arch
    from hwnas.report.run import RunFolder, read_text, read_weights
    from hwnas.storage import write_file

    import_plugins(plugin)
    folder = RunFolder(run)
    report = folder.read_report()
    data = read_bytes(folder.model)
    if report.float32_test and batch:
        raise UserError("a quantised model is exported as it was delivered", got=f"batch {batch}", remedy="leave --batch out")
    if not report.float32_test:
        model = to_onnx(read_arch(read_text(folder.arch)), read_weights(folder.weights), read_metadata(data), batch=batch)
        data = model.SerializeToString()
    write_file(output, data)
    if as_json:
        print_json({"model": str(output), "bytes": len(data), "key": report.key})
    else:
        out_console.print(f"{output}: {len(data):,} bytes", highlight=False)
