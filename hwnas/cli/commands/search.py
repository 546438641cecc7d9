"""`hwnas search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, DeviceName, SpaceText, err_console, out_console


def search(
    space: SpaceText,
    data: Annotated[
        str, typer.Option(help="digits, or the path of an npz, of CIFAR batches, or of a folder of images by class.")
    ],
    budget: Annotated[list[str], typer.Option(help="Limit such as 2ms, 30MMACs, 1Mparams, 512KB; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    device: DeviceName = "cpu",
    strategy: Annotated[str, typer.Option(help="Search strategy: name, or name(argument=value, ...).")] = "auto",
    predictor: Annotated[str, typer.Option(help="Latency predictor.")] = "gaussian_process",
    evaluator: Annotated[
        str,
        typer.Option(help="What a candidate is worth: name, or name(argument=value, ...)."),
    ] = "supernet",
    training: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Hyper-parameter to search too: learning_rate, or batch_size=32,64, or all; may be repeated."),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Candidates to evaluate.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Candidates to propose at a time, where the strategy can.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes that evaluate; the result does not depend on them.")] = 1,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Threads of each evaluation. Default: one where it trains, else all."),
    ] = None,
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
    warm_start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Finished run of the same space, for another device or on other data: what was good there comes first."
        ),
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
            space, data, device, budget, out, strategy=strategy, predictor=predictor, evaluator=evaluator,
            training=training or (), evaluations=evaluations, batch=batch, workers=workers, threads=threads,
            supernet_epochs=supernet_epochs, sampling=sampling, epochs=epochs, inherit=inherit, size=size, limit=limit,
            seed=seed, profile=profile, warm_start=warm_start, resume=resume, watch=tell,
        )  # fmt: skip
    if as_json:
        print(report.model_dump_json())
    else:
        for line in report_lines(report):
            out_console.print(line, highlight=False, soft_wrap=True)
        out_console.print(f"model     {out / 'model.onnx'}", highlight=False)
    if not report.succeeded:
        raise typer.Exit(1)
