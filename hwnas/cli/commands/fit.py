"""`hwnas fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, DeviceName, err_console, out_console, print_json, read_dims


def fit(
    space: Annotated[list[str], typer.Option("--space", help="Search space whose profiled networks to use; may be repeated.")],
    device: DeviceName = "cpu",
    predictor: Annotated[Optional[str], typer.Option(help="Latency predictor. Default: the best of all.")] = None,  # noqa: UP045
    profile: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the profile, in which the predictor is written. Default: latency_models/<device>."),
    ] = None,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.5, help="Share of the networks kept for judging.")] = 0.25,
    input: Annotated[str, typer.Option(help="Input size, channels,height,width.")] = "",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Fits latency predictors to a profile; writes the best, predictor.json, and how far it is off, report.md."""
    from hwnas.errors import UserError
    from hwnas.latency.device import FOLDER, load_device
    from hwnas.latency.predictor import LatencyTable, Networks, best_predictor, check_complete, error_json, model_class
    from hwnas.latency.profile import Profile
    from hwnas.latency.reconcile import reconcile
    from hwnas.report.latency import error_table, predictor_report, reconciliation_table
    from hwnas.report.progress import watch
    from hwnas.spaces import make_space
    from hwnas.storage import write_file

    target = load_device(device)
    if predictor:
        model_class(predictor)
    dims = {"input": read_dims(input)} if input else {}
    spaces = [make_space(text, **({} if "classes" in text else {"classes": classes}), **dims) for text in space]
    folder = profile or FOLDER / target.name
    found = Profile.load(folder / "profile.jsonl")
    if found.device != target.name:
        raise UserError(
            f"the profile {found.path} is of another device: {found.device}", got=target.name, remedy=f"--device {found.device}"
        )
    check_complete(found, spaces)
    table, networks = LatencyTable.of(found), Networks.of(found, spaces)
    fitted, judged = networks.split(held_out)
    with watch(err_console) as tell:
        fits = best_predictor(table, fitted, [predictor] if predictor else (), lambda name: tell("fitting", 0, 1, name))
        tell("fitting", 1, 1, "")
    retests = [r for r in (found.retest_error(where) for where in spaces) if r is not None]
    retest = sum(retests) / len(retests) if retests else None
    left_out = {name: p.error(retest) for name, p in fits.items()}
    unseen = {name: p.judge(judged, retest) for name, p in fits.items()}
    name, best = next(iter(fits.items()))
    where_time_goes = reconcile(found, spaces)
    about = {
        "device": target.name, "fingerprint": found.fingerprint, "spaces": space,
        "left_out": error_json(left_out[name]), "held_out": error_json(unseen[name]),
    }  # fmt: skip
    best.save(folder / "predictor.json", about)
    report = predictor_report(target.name, found.fingerprint, space, left_out, unseen, where_time_goes)
    write_file(folder / "report.md", report)
    if as_json:
        errors = {n: {"left_out": error_json(left_out[n]), "held_out": error_json(unseen[n])} for n in fits}
        print_json({"predictor": str(folder / "predictor.json"), "chosen": name, "errors": errors})
        return
    again = "not known" if retest is None else f"{retest:.1%}"
    title = f"{len(judged.archs)} networks never seen, predictors fitted to {len(fitted.archs)}; retest error {again}"
    out_console.print(error_table(title, unseen))
    if where_time_goes:
        out_console.print(reconciliation_table(where_time_goes))
    out_console.print(f"predictor: {folder / 'predictor.json'} ({name}), report: {folder / 'report.md'}", highlight=False)
