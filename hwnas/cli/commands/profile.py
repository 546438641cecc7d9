"""`hwnas profile`."""

from __future__ import annotations

import math
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
    input: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Input size, channels,height,width; may be repeated, for one profile of several sizes."),
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    networks: Annotated[int, typer.Option(min=4, help="Whole networks of each size, to calibrate predictors with.")] = 24,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time to measure, at most; the same command goes on.")] = math.inf,
    as_json: AsJson = False,
) -> None:
    """Measures every distinct placed op of a space and whole networks. Interrupted, it continues with the same command."""
    from hwnas.latency.device import FOLDER, load_device
    from hwnas.latency.predictor import check_predictable, make_predictor
    from hwnas.latency.profile import Profile
    from hwnas.latency.reconcile import reconcile
    from hwnas.latency.sweep import profile_space
    from hwnas.placements import placed_ops
    from hwnas.plugins import known
    from hwnas.report.latency import reconciliation_table
    from hwnas.report.progress import watch
    from hwnas.report.tables import profile_table, table
    from hwnas.spaces import make_space

    target = load_device(device)
    sizes = [{"input": read_dims(size)} for size in input or () if size] or [{}]
    spaces = [make_space(space, classes=classes, **size) for size in sizes]
    for where in spaces:
        check_predictable(where)
    found = Profile.open((out or FOLDER / target.name) / "profile.jsonl", target)
    with watch(err_console) as tell:
        coverage = profile_space(
            found, target, spaces, networks=networks, minutes=minutes, improve=True,
            progress=lambda phase, done, total: tell(phase, done, total, ""),
        )  # fmt: skip
    table_of_ops = found.ops()
    ops = {placed: table_of_ops[placed] for where in spaces for placed in placed_ops(where) if placed in table_of_ops}
    complete = all(not found.missing(where) for where in spaces) and coverage.measured == coverage.total
    retests = [found.retest_error(where) for where in spaces]
    errors = [
        {name: make_predictor(name, found, where).error(retest) for name in known("hwnas.latency.predictors")}
        for where, retest in zip(spaces, retests, strict=True)
        if complete
    ]
    where_time_goes = reconcile(found, spaces) if complete else None
    failures = found.failures()
    if as_json:
        measured = [{"op": str(placed), "latency_ms": ms} for placed, ms in ops.items()]
        predictors = {n: [vars(e[n]) for e in errors] for n in known("hwnas.latency.predictors")} if complete else {}
        print_json(
            {
                "profile": str(found.path), **vars(coverage), "failures": failures, "ops": measured,
                "predictors": {n: e[0] if len(spaces) == 1 else e for n, e in predictors.items()},
                "where_time_goes": where_time_goes and vars(where_time_goes),
            }
        )  # fmt: skip
        return
    out_console.print(profile_table(f"{spaces[0].name} on {target.name}: {len(ops)} placed ops", ops))
    for where, retest, by_name in zip(spaces, retests, errors, strict=False):
        rows = [
            (n, f"{e.mape:.1%}", f"{e.within_10_percent:.0%}", "" if e.spearman is None else f"{e.spearman:.3f}")
            for n, e in by_name.items()
        ]
        counted = max(e.networks for e in by_name.values())
        again = "none" if retest is None else f"{retest:.1%}"
        title = f"{where.input}: predictors on {counted} networks, each left out once; retest error {again}"
        out_console.print(table(title, ("predictor", "mean error", "within 10 %", "rank correlation"), rows))
    if where_time_goes:
        out_console.print(reconciliation_table(where_time_goes))
    for reason in sorted(set(failures.values())):
        count = sum(r == reason for r in failures.values())
        out_console.print(f"failed: {count} models: {reason}", highlight=False, soft_wrap=True)
    state = f"{coverage.measured} of {coverage.total} measured, {coverage.settled} of them settled"
    more = "" if complete else "; the same command goes on"
    out_console.print(f"profile: {found.path}: {state}{more}", highlight=False, soft_wrap=True)
