"""ONNX Runtime. Models run through an input/output binding: on a GPU in its own memory, at fixed addresses for CUDA graphs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hwnas.errors import UserError
from hwnas.latency.session import Settings, made_up, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ELEMENTS = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
    "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(bool)": np.bool_,
}  # fmt: skip
_MEMORY = dict.fromkeys(("CUDAExecutionProvider", "TensorrtExecutionProvider"), "cuda")
_UNREADABLE = (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.InvalidArgument, ort_errors.NoModel)
_UNRUNNABLE = (ort_errors.NotImplemented, ort_errors.Fail, ort_errors.RuntimeException)


def version() -> str:
    return f"onnxruntime {ort.__version__}"


def providers() -> list[str]:
    return list(ort.get_available_providers())


class Model:
    """ONNX Runtime would fall back to the processor in silence, and the number would be of something else: that is refused."""

    def __init__(self, content: bytes, settings: Settings, batch: int, cores: Sequence[int]) -> None:
        self._memory = _MEMORY.get(settings.provider, "cpu")
        if self._memory == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls(msvc=False)  # CUDA's libraries from Python packages, which the system's loader does not find
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _LEVELS[settings.optimization]
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if settings.spinning else "0")
        # A model's threads look for work for some milliseconds after a run, on cores that the next model's threads need.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if len(cores) == settings.threads > 1:
            own, *others = cores
            options.add_session_config_entry("session.intra_op_thread_affinities", ";".join(str(core + 1) for core in others))
            os.sched_setaffinity(0, [own])  # of the thread that calls
        if settings.provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(
                content, options, providers=[(settings.provider, dict(settings.provider_options))], enable_fallback=False
            )
        except (*_UNREADABLE, UnicodeDecodeError) as error:
            raise UserError("this is not a model that ONNX Runtime can read", got=reason(error)) from None
        except _UNRUNNABLE as error:
            raise UserError(
                f"the model has operators that {settings.provider} cannot run", got=reason(error),
                remedy="export it with supported operators, or measure it on another device",
            ) from None  # fmt: skip
        active = self._session.get_providers()[0]
        if active != settings.provider:
            raise UserError(f"{settings.provider} fell back in silence", got=active, remedy="check the provider's installation")
        try:
            self._bind(settings, batch)
        except UnicodeDecodeError as error:
            raise UserError("the names in a model are text", got=str(error)) from None

    def _bind(self, settings: Settings, batch: int) -> None:
        """Made-up input and room for every output, in the provider's own memory."""
        memory = self._memory
        index = int(settings.provider_options.get("device_id", 0))
        binding = self._binding = self._session.io_binding()
        self._held: list[Any] = []  # the binding keeps addresses, not objects
        sizes: dict[object, int] = {}
        for value in self._session.get_inputs():
            array = made_up(value.name, value.shape, _ELEMENTS.get(value.type), batch)
            sizes.update({d: n for d, n in zip(value.shape, array.shape) if isinstance(d, str)})  # noqa: B905 (Python 3.8)
            self._held.append(ort.OrtValue.ortvalue_from_numpy(array, memory, index))
            binding.bind_ortvalue_input(value.name, self._held[-1])
        for value in self._session.get_outputs():
            shape = [sizes.get(d, d) for d in value.shape]
            fixed = all(isinstance(d, int) for d in shape) and value.type in _ELEMENTS
            if memory != "cpu" and fixed:
                self._held.append(ort.OrtValue.ortvalue_from_shape_and_type(shape, _ELEMENTS[value.type], memory, index))
                binding.bind_ortvalue_output(value.name, self._held[-1])
            elif settings.provider_options.get("enable_cuda_graph") == "1":
                raise UserError("a CUDA graph needs outputs of known shape", got=f"{value.name}: {value.shape}")
            else:
                binding.bind_output(value.name, memory, index)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)
        if self._memory != "cpu":
            self._binding.synchronize_outputs()

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        (value,) = self._session.get_inputs()
        result: NDArray[np.float32] = self._session.run(None, {value.name: x})[0]
        return result
