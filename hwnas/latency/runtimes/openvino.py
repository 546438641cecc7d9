"""OpenVINO, an optional extra. Its providers are its own names of devices (CPU, GPU, NPU), its options are properties."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

# OpenVINO sends a usage report when it is imported, by a forked process that can outlive the agent, amid what is measured.
# Without this module it does not, which is a case that it provides for.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402

from hwnas.errors import UserError  # noqa: E402
from hwnas.latency.session import Settings, made_up  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


def version() -> str:
    return f"openvino {ov.__version__}"


def providers() -> list[str]:
    return list(ov.Core().available_devices)


class Model:
    """A model compiled for the shapes of its input. On the processor in float32: the bfloat16 that OpenVINO may prefer is
    another network."""

    def __init__(self, content: bytes, settings: Settings, batch: int, cores: Sequence[int]) -> None:
        self._core, self._settings = ov.Core(), settings
        try:
            self._model = self._core.read_model(content, b"")
        except RuntimeError as error:
            raise UserError("this is not a model that OpenVINO can read", got=_reason(error)) from None
        arrays = [
            made_up(value.any_name, [d.get_length() if d.is_static else None for d in value.partial_shape], _kind(value), batch)
            for value in self._model.inputs
        ]
        self._request = self._compile(arrays)

    def _compile(self, arrays: list[NDArray[Any]]) -> Any:
        """A request with these inputs."""
        given, options = self._settings, {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if given.provider == "CPU":
            options.update(INFERENCE_NUM_THREADS=str(given.threads), INFERENCE_PRECISION_HINT="f32", ENABLE_CPU_PINNING="NO")
        try:
            self._model.reshape({i: list(array.shape) for i, array in enumerate(arrays)})
            request = self._core.compile_model(self._model, given.provider, {**options, **given.provider_options})
        except RuntimeError as error:
            raise UserError(
                f"OpenVINO cannot run this model with these options on {given.provider}", got=_reason(error),
                remedy="export it with supported operators, or measure it on another device",
            ) from None  # fmt: skip
        request = request.create_infer_request()
        for i, array in enumerate(arrays):
            request.set_input_tensor(i, ov.Tensor(array))
        return request

    def run(self) -> None:
        self._request.infer()

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        request = self._compile([x])
        request.infer()
        result: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        return result


def _reason(error: Exception) -> str:
    """The last line: those before it say where in OpenVINO's sources it was thrown."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def _kind(value: Any) -> Any:
    try:
        return value.element_type.to_dtype()
    except RuntimeError:  # a type that numpy does not have
        return None
