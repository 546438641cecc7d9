"""Session: a model in the hands of a runtime, with made-up input bound to it, and the fingerprint of what runs.

A runtime is a file in `latency/runtimes`, found by its name. Part of the agent: beside the runtime only numpy, Python 3.8.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from hwnas.errors import UserError
from hwnas.latency.processor import accelerators, instruction_sets, processor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Optimization = Literal["disabled", "basic", "extended", "all"]


class Settings(Protocol):
    """What a latency depends on beside the model and the machine. A Device has it."""

    runtime: str
    provider: str
    provider_options: dict[str, str]
    threads: int
    spinning: bool
    optimization: Optimization


class Model(Protocol):
    """A loaded model. `run` infers on the bound input and returns when the result is there; `predict` on a given one."""

    def __init__(self, content: bytes, settings: Settings, batch: int, cores: Sequence[int]) -> None:
        """Loads a serialized ONNX model. `cores`: those that this process is kept on, if it is.

        Raises UserError if the bytes are not a model, or the provider cannot run all of it by itself.
        """

    def run(self) -> None: ...

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...


class Runtime(Protocol):
    """What a file in `latency/runtimes` defines."""

    Model: type[Model]

    def version(self) -> str:
        """Name and version."""

    def providers(self) -> list[str]:
        """Execution providers that are installed here."""


def load_runtime(name: str) -> Runtime:
    """UserError if there is no such runtime or what it needs is not installed."""
    try:
        return cast(Runtime, importlib.import_module(f"hwnas.latency.runtimes.{name}"))
    except ModuleNotFoundError as error:
        if error.name == f"hwnas.latency.runtimes.{name}":
            raise UserError("unknown runtime", got=name, remedy="a runtime is a file in hwnas/latency/runtimes") from None
        raise UserError(
            f"the runtime {name} is not installed for {sys.executable}", got=str(error), remedy=f"install {error.name} there"
        ) from None


def providers() -> list[str]:
    """Execution providers that ONNX Runtime offers here."""
    return load_runtime("onnxruntime").providers()


def fingerprint(settings: Settings) -> dict[str, str]:
    """What a latency on this machine depends on beside the model. Numbers with different fingerprints must not be mixed.

    UserError if the runtime or its execution provider is not installed here.
    """
    runtime = load_runtime(settings.runtime)
    if settings.provider not in runtime.providers():
        raise UserError(
            "the device needs an execution provider that is not installed",
            got=settings.provider,
            remedy=f"available: {', '.join(runtime.providers())}",
        )
    found = {
        "runtime": runtime.version(),
        "provider": settings.provider,
        "options": json.dumps(settings.provider_options, sort_keys=True),
        "optimization": settings.optimization,
        "threads": str(settings.threads),
        "spinning": str(settings.spinning).lower(),
        "processor": processor(),
        "instruction_sets": " ".join(instruction_sets()),
    }
    if settings.threads > 1 and settings.provider.startswith("CPU"):
        found["waiting"] = "until a run ends"  # its threads do not look for work between runs, and keep to a core each
    if not settings.provider.startswith("CPU"):
        found["accelerators"] = ", ".join(accelerators())
    return found


class Session:
    """A model, loaded by the runtime of its settings, that has run once on made-up input.

    Raises UserError if the bytes are not an ONNX model, or the provider is missing, cannot run all of its operators, or cannot
    run it on made-up input.
    """

    def __init__(self, model: bytes, settings: Settings, batch: int = 1, cores: Sequence[int] = ()) -> None:
        """`cores`: those that this process is kept on; as many as threads, and each thread keeps to one of its own."""
        fingerprint(settings)  # refuses what is not here
        self._model = load_runtime(settings.runtime).Model(model, settings, batch, cores)
        self.run = self._model.run  # the loop that is timed calls the runtime without a detour
        try:
            self.run()
        except RuntimeError as error:  # the runtimes' own errors are of this kind
            raise UserError(
                "the model cannot be run on made-up input", got=reason(error), remedy="measure a model that takes any numbers"
            ) from None

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch of the only input."""
        return self._model.predict(x)


def made_up(name: str, shape: Sequence[object], kind: Any, batch: int) -> NDArray[Any]:
    """Random numbers for an input, zeros where they may be indices. `kind`: numpy's type, None if it has no such.

    A dimension that is not a positive number is symbolic. UserError if one but the first is.
    """
    sizes = [d if isinstance(d, int) and d > 0 else batch if i == 0 else None for i, d in enumerate(shape)]
    known = [d for d in sizes if d is not None]
    if len(known) < len(sizes) or kind is None:
        raise UserError(
            "only the first dimension of an input may be symbolic, and its elements must be numbers",
            got=f"{name}: {'' if kind is None else np.dtype(kind).name} {list(shape)}",
            remedy="fix the other dimensions before measuring",
        )
    if np.issubdtype(kind, np.floating):
        return np.ascontiguousarray(np.random.default_rng(0).standard_normal(known).astype(kind))
    return np.zeros(known, kind)


def reason(error: Exception) -> str:
    """What a runtime's error says, without the codes before it."""
    return str(error).split(" : ")[-1].strip()
