"""`hwnas transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hwnas.cli.options import AsJson, DeviceName, SpaceText, err_console, out_console, print_json, read_dims


def transfer(
    space: SpaceText,
    known: Annotated[
        list[str], typer.Option(help="Known device, by name or by the folder of its predictor.json; at least two.")
    ],
    device: DeviceName = "cpu",
    samples: Annotated[int, typer.Option(min=3, help="Networks to measure on the new device.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to measure, at most.")] = 30.0,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder of the new device's profile and predictor. Default: latency_models/<device>."),
    ] = None,
    input: Annotated[str, typer.Option(help="Input size, channels,height,width.")] = "",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Fits a new device's predictor from known devices and a few networks, which it chooses and measures."""
    import numpy as np

    from hwnas.latency.device import FOLDER, load_device
    from hwnas.latency.measure import measure
    from hwnas.latency.predictor import error_json, load_predictor
    from hwnas.latency.profile import Profile
    from hwnas.latency.transfer import Transfer
    from hwnas.lower.onnx import to_onnx
    from hwnas.lower.weights import init_weights
    from hwnas.report.latency import error_table
    from hwnas.report.progress import watch
    from hwnas.spaces import make_space

    target = load_device(device)
    where = make_space(space, classes=classes, **({"input": read_dims(input)} if input else {}))
    folders = [Path(name) if Path(name).is_dir() else FOLDER / name for name in known]
    family = Transfer([load_predictor(path / "predictor.json")[0] for path in folders], where)
    chosen = family.choose(samples)
    folder = out or FOLDER / target.name
    found = Profile.open(folder / "profile.jsonl", target)
    have = {visit.arch.key for visit in found.visits("network", where.fingerprint)}
    left = [arch for arch in chosen if arch.key not in have]
    if left:
        models = [to_onnx(arch, init_weights(arch)).SerializeToString() for arch in left]
        with watch(err_console) as tell:
            measured = measure(
                models, target, seconds=seconds, canary_ms=found.canary_ms,
                progress=lambda share: tell("measuring", round(100 * share), 100, ""),
            )  # fmt: skip
        for arch, number in zip(left, measured.models, strict=True):
            found.add("network", where.fingerprint, arch, 0, measured.canary.latency_ms, number)
    latencies = {arch.key: ms for arch, ms in found.latencies("network", where.fingerprint).items()}
    predictor = family.fit(chosen, np.array([latencies[arch.key] for arch in chosen]))
    error = predictor.error(None)
    about = {
        "device": target.name, "fingerprint": found.fingerprint, "spaces": [space], "known": known,
        "left_out": error_json(error),
    }  # fmt: skip
    predictor.save(folder / "predictor.json", about)
    if as_json:
        print_json({"predictor": str(folder / "predictor.json"), "measured": latencies, "left_out": error_json(error)})
        return
    out_console.print(error_table(f"{samples} networks on {target.name}, each left out once", {"transfer": error}))
    out_console.print(f"predictor: {folder / 'predictor.json'}", highlight=False)
