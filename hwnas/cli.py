"""The command line. Heavy libraries are imported inside the commands, so that help is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from hwnas.errors import UserError

app = typer.Typer(
    help="Hardware-aware architecture search: a space, a device and a budget in; a trained, measured ONNX model out.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
INTERRUPTED = 130  # what typer makes of Ctrl-C
out_console, err_console = Console(), Console(stderr=True)

SpaceText = Annotated[str, typer.Option("--space", help="Search space: name, or name(argument=value, ...).")]
DeviceName = Annotated[str, typer.Option("--device", help="Device: see hwnas devices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Profiles = Annotated[
    Optional[Path],  # noqa: UP045 (typer reads annotations at run time on Python 3.10)
    typer.Option("--out", help="Folder of the profile. Default: latency_models/<device>."),
]


Plugins = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--plugin", help="Module of an op outside the package; may be repeated."),
]


def _import(plugins: list[str] | None) -> None:
    import importlib

    for name in plugins or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError("a plugin must be a module that can be imported", got=name, remedy=str(error)) from None


def _print_json(values: Any) -> None:
    print(json.dumps(values))


@app.command()
def devices(as_json: AsJson = False) -> None:
    """What can be measured here: processor, instruction sets, execution providers and the devices by name."""
    import os

    from hwnas.latency.device import instruction_sets, known_devices, load_device, processor
    from hwnas.latency.session import providers
    from hwnas.report.tables import table

    found = [load_device(name) for name in known_devices()]
    available = providers()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = {"processor": processor(), "cores": cores, "instruction_sets": instruction_sets(), "providers": available}
    if as_json:
        _print_json({**here, "devices": [{**d.model_dump(), "available": d.provider in available} for d in found]})
        return
    for name, value in here.items():
        out_console.print(
            f"{name.replace('_', ' '):<17} {', '.join(value) if isinstance(value, list) else value}", highlight=False
        )
    rows = [(d.name, d.provider, str(d.threads), "yes" if d.provider in available else "no", d.description) for d in found]
    out_console.print(table("Devices", ("name", "provider", "threads", "available", "description"), rows))


@app.command()
def profile(
    space: SpaceText,
    device: DeviceName = "cpu",
    out: Profiles = None,
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
    where = make_space(space, classes=classes, **({"input": _dims(input)} if input else {}))
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
        _print_json({"profile": str(found.path), "ops": measured, "predictors": {n: vars(e) for n, e in errors.items()}})
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


@app.command()
def search(
    space: SpaceText,
    data: Annotated[
        str, typer.Option(help="digits, or the path of an npz, of CIFAR batches, or of a folder of images by class.")
    ],
    budget: Annotated[list[str], typer.Option(help="Limit such as 2ms, 30MMACs, 1Mparams, 512KB; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    device: DeviceName = "cpu",
    strategy: Annotated[str, typer.Option(help="Search strategy: name, or name(argument=value, ...).")] = "evolution",
    predictor: Annotated[str, typer.Option(help="Latency predictor.")] = "lookup_table",
    evaluations: Annotated[int, typer.Option(min=1, help="Architectures to score in the supernet.")] = 300,
    supernet_epochs: Annotated[int, typer.Option(min=1, help="Epochs of the supernet.")] = 40,
    sampling: Annotated[str, typer.Option(help="Paths a supernet step trains: uniform or sandwich.")] = "uniform",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the winner, at most.")] = 60,
    inherit: Annotated[bool, typer.Option(help="Train the winner from the supernet's weights.")] = False,
    size: Annotated[Optional[int], typer.Option(min=1, help="Resize images to this many pixels a side.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="Use this many training images.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    profile: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the profile. Default: latency_models/<device>."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """The main job: searches under a budget, trains the winner, exports it to ONNX, verifies and measures it."""
    from hwnas.compile import compile_network
    from hwnas.report.progress import watch
    from hwnas.report.tables import report_lines

    with watch(err_console) as tell:
        report = compile_network(
            space, data, device, budget, out, strategy=strategy, predictor=predictor, evaluations=evaluations,
            supernet_epochs=supernet_epochs, sampling=sampling, epochs=epochs, inherit=inherit, size=size, limit=limit,
            seed=seed, profile=profile, resume=resume, watch=tell,
        )  # fmt: skip
    if as_json:
        print(report.model_dump_json())
    else:
        for line in report_lines(report):
            out_console.print(line, highlight=False, soft_wrap=True)
        out_console.print(f"model     {out / 'model.onnx'}", highlight=False)
    if not report.succeeded:
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    batch: Annotated[Optional[int], typer.Option(min=1, help="Fixed batch size. Default: symbolic.")] = None,  # noqa: UP045
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Writes a finished run's network as ONNX, from its arch and weights."""
    from hwnas.lower.onnx import read_metadata, to_onnx
    from hwnas.ops import read_arch
    from hwnas.report.run import RunFolder, read_text, read_weights
    from hwnas.storage import write_file

    _import(plugin)
    folder = RunFolder(run)
    report = folder.read_report()
    metadata = read_metadata(_read(folder.model))
    model = to_onnx(read_arch(read_text(folder.arch)), read_weights(folder.weights), metadata, batch=batch)
    data = model.SerializeToString()
    write_file(output, data)
    if as_json:
        _print_json({"model": str(output), "bytes": len(data), "key": report.key})
    else:
        out_console.print(f"{output}: {len(data):,} bytes", highlight=False)


@app.command()
def measure(
    models: Annotated[list[Path], typer.Argument(help="ONNX files; several are measured against each other.")],
    device: DeviceName = "cpu",
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to measure, at most.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measures ONNX models on a device: any model whose first input dimension is the only symbolic one."""
    from hwnas.latency.device import load_device
    from hwnas.latency.measure import measure as measure_models
    from hwnas.latency.session import fingerprint
    from hwnas.report.progress import watch
    from hwnas.report.tables import measurement_table

    target = load_device(device)
    contents = [_read(path) for path in models]
    with watch(err_console) as tell:
        found = measure_models(
            contents, target, seconds=seconds, progress=lambda share: tell("measuring", round(100 * share), 100, "")
        )
    named = dict(zip(map(str, models), found.models, strict=True))
    if as_json:
        rows = [{"model": n, **m.to_json()} for n, m in named.items()]
        _print_json({"device": target.name, "fingerprint": fingerprint(target), "measurements": rows})
    else:
        out_console.print(measurement_table(named))


@app.command()
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

    _import(plugin)
    path = Path(what)
    report = RunFolder(path).read_report() if path.is_dir() else None
    if report:
        text = read_text(RunFolder(path).arch)
    elif path.suffix == ".onnx":
        text = arch_text(_read(path))
    else:
        text = _read(path).decode(errors="replace")
    arch = simplify(read_arch(text))
    found = cost(arch)
    if as_json:
        _print_json(
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError("the file cannot be read", got=str(path), remedy=error.strerror or "") from None


def _dims(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError("an input size is numbers with commas", got=text, remedy="write 3,32,32") from None


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


if __name__ == "__main__":
    main()
