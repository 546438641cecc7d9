"""`hwnas profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, DeviceName, SpaceText, err_console, out_console, print_json, read_dims


def profile(
    space: SpaceText,
    device: DeviceName = "cpu",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder of the profile. Default: latency_models/<device>."),
    ] = None,
    input: Annotated[str, typer.Option(help="Input size, channels,height,width.")] = "",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    networks: Annotated[int, typer.Option(min=4, help="Whole networks to calibrate predictors with.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Measures every distinct placed op of a space with ONNX Runtime. Interrupted, it continues with the same command."""
    from hwnas.latency.device import FOLDER, load_device
    from hwnas.latency.predictor import check_predictable, make_predictor
    from hwnas.latency.profile import Profile, profile_space, retest_error
    from hwnas.placements import placed_ops
    from hwnas.plugins import known
    from hwnas.report.progress import watch
    from hwnas.report.tables import profile_table, table
    from hwnas.spaces import make_space

    target = load_device(device)
    where = make_space(space, classes=classes, **({"input": read_dims(input)} if input else {}))
    check_predictable(where)
    found = Profile.open((out or FOLDER / target.name) / "profile.jsonl", target)
    with watch(err_console) as tell:
        profile_space(
            found, where, networks=networks, improve=True, progress=lambda phase, done, total: tell(phase, done, total, "")
        )
    table_of_ops = found.ops()
    ops = {placed: table_of_ops[placed] for placed in placed_ops(where)}
    retest = retest_error(found, where)
    errors = {name: make_predictor(name, found, where).error(retest) for name in known("hwnas.latency.predictors")}
    if as_json:
        measured = [{"op": str(p), **m.to_json()} for p, m in ops.items()]
        print_json({"profile": str(found.path), "ops": measured, "predictors": {n: vars(e) for n, e in errors.items()}})
        return
    out_console.print(profile_table(f"{where.name} on {target.name}: {len(ops)} placed ops", ops))
    rows = [
        (n, f"{e.mape:.1%}", f"{e.within_10_percent:.0%}", "" if e.spearman is None else f"{e.spearman:.3f}")
        for n, e in errors.items()
    ]
    counted = max(e.networks for e in errors.values())
    again = "none" if retest is None else f"{retest:.1%}"
    title = f"Predictors on {counted} networks, each left out once; retest error {again}"
    out_console.print(table(title, ("predictor", "mean error", "within 10 %", "rank correlation"), rows))
    out_console.print(f"profile: {found.path}", highlight=False)
