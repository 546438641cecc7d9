"""`hwnas devices`."""

from __future__ import annotations

from hwnas.cli.options import AsJson, out_console, print_json


def devices(as_json: AsJson = False) -> None:
    """What can be measured here: processor, instruction sets, execution providers and the devices by name."""
    import os

    from hwnas.latency.device import known_devices, load_device
    from hwnas.latency.processor import instruction_sets, processor
    from hwnas.latency.session import providers
    from hwnas.report.tables import table

    found = [load_device(name) for name in known_devices()]
    available = providers()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = {"processor": processor(), "cores": cores, "instruction_sets": instruction_sets(), "providers": available}
    if as_json:
        print_json({**here, "devices": [{**d.model_dump(), "available": d.provider in available} for d in found]})
        return
    for name, value in here.items():
        out_console.print(
            f"{name.replace('_', ' '):<17} {', '.join(value) if isinstance(value, list) else value}", highlight=False
        )
    rows = [(d.name, d.provider, str(d.threads), "yes" if d.provider in available else "no", d.description) for d in found]
    out_console.print(table("Devices", ("name", "provider", "threads", "available", "description"), rows))
