"""`hwnas measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.options import AsJson, DeviceName, err_console, out_console, print_json, read_bytes


def measure(
    models: Annotated[list[Path], typer.Argument(help="ONNX files; several are measured against each other.")],
    device: DeviceName = "cpu",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to measure, at most.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measures ONNX models on a device: any model whose first input dimension is the only symbolic one.

    Twice, each time in a process of its own, for the retest error. Exit code 1 if a number is refused.
    """
    from hwnas.errors import UserError
    from hwnas.latency.device import load_device
    from hwnas.latency.measure import Failure
    from hwnas.latency.measure import measure as measure_models
    from hwnas.latency.target import fingerprint
    from hwnas.report.progress import watch
    from hwnas.report.tables import measurement_table

    target = load_device(device)
    contents = [read_bytes(path) for path in models]
    with watch(err_console) as tell:
        found = measure_models(
            contents, target, seconds=seconds, turns=2, progress=lambda share: tell("measuring", round(100 * share), 100, "")
        )
    for path, outcome in zip(models, found.outcomes, strict=True):
        if isinstance(outcome, Failure):
            raise UserError(f"{path} cannot be measured: {outcome.reason}")
    named = dict(zip(map(str, models), found.models, strict=True))
    if as_json:
        rows = [{"model": n, **m.to_json(), "verdict": m.verdict, "doubts": m.doubts} for n, m in named.items()]
        print_json({"device": target.name, "fingerprint": fingerprint(target), "measurements": rows})
    else:
        out_console.print(measurement_table(named))
        for name, m in named.items():
            for doubt in m.doubts:
                out_console.print(f"{name}: {doubt}", highlight=False, soft_wrap=True)
    if any(m.verdict == "refused" for m in found.models):
        raise typer.Exit(1)
