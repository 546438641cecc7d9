"""`hwnas predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, DeviceName, Plugins, import_plugins, out_console, print_json, read_bytes


def predict(
    networks: Annotated[list[Path], typer.Argument(help="Archs' text files, run folders, or ONNX files that hwnas wrote.")],
    device: DeviceName = "cpu",
    predictor: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Predictor. Default: latency_models/<device>/predictor.json."),
    ] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Predicts latencies with a fitted predictor, without touching the device."""
    from hwnas.latency.device import FOLDER
    from hwnas.latency.predictor import load_predictor
    from hwnas.lower.onnx import arch_text
    from hwnas.ops import read_arch
    from hwnas.report.run import RunFolder
    from hwnas.report.tables import table

    import_plugins(plugin)
    path = predictor or FOLDER / device / "predictor.json"
    model, about = load_predictor(path)

    def text(what: Path) -> str:
        if what.suffix == ".onnx":
            return arch_text(read_bytes(what))
        return read_bytes(RunFolder(what).arch if what.is_dir() else what).decode(errors="replace")

    archs = [read_arch(text(what)) for what in networks]
    named = list(zip(map(str, networks), model.predict(archs), strict=True))
    if as_json:
        print_json(
            {
                "predictor": str(path),
                "device": about.get("device"),
                "predictions": [{"network": n, **vars(p)} for n, p in named],
            }
        )
        return
    rows = [(n, f"{p.latency_ms:.4f}", f"{p.low_ms:.4f} to {p.high_ms:.4f}") for n, p in named]
    out_console.print(
        table(f"Predicted latency in ms on {about.get('device', device)}", ("network", "ms", "90 % interval"), rows)
    )
