"""`hwnas devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hwnas.cli.options import AsJson, out_console, print_json

if TYPE_CHECKING:
    from hwnas.latency.device import Device


def devices(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads annotations at run time on Python 3.10)
        typer.Argument(help="Devices to try: reached, and asked what they are."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What can be measured: this machine, and the devices by name. With names, those devices are reached and asked."""
    from hwnas.latency.device import known_devices, load_device
    from hwnas.latency.processor import accelerators, cores, instruction_sets, processor
    from hwnas.latency.session import providers
    from hwnas.latency.target import fingerprint
    from hwnas.report.tables import table

    if names:
        answers = {name: fingerprint(load_device(name)) for name in names}
        if as_json:
            print_json(answers)
        for name, answer in {} if as_json else answers.items():
            out_console.print(table(name, ("", "value"), answer.items()))
        return
    found = [load_device(name) for name in known_devices()]
    here = {
        "processor": processor(), "cores": len(cores()), "instruction_sets": instruction_sets(), "accelerators": accelerators(),
        "providers": providers(),
    }  # fmt: skip
    if as_json:
        print_json({**here, "devices": [{**d.model_dump(mode="json"), "available": _available(d)} for d in found]})
        return
    for key, value in here.items():
        text = ", ".join(value) if isinstance(value, list) else value
        out_console.print(f"{key.replace('_', ' '):<17} {text or 'none'}", highlight=False)
    words = {True: "yes", False: "no", None: ""}
    rows = [
        (
            d.name,
            d.transport.kind,
            d.provider.removesuffix("ExecutionProvider"),
            str(d.threads),
            d.precision,
            words[_available(d)],
        )
        for d in found
    ]
    out_console.print(table("Devices", ("name", "transport", "provider", "threads", "precision", "available"), rows))


def _available(device: Device) -> bool | None:
    """Whether a device of this machine has its runtime and provider; None for one that would have to be reached."""
    from hwnas.errors import UserError
    from hwnas.latency.session import fingerprint

    if device.transport.kind != "local":
        return None
    try:
        fingerprint(device)
    except UserError:
        return False
    return True
