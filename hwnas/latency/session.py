"""The only door to ONNX Runtime: opening a model on a device, running it, and the fingerprint of what ran."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hwnas.errors import UserError
from hwnas.latency.device import Device, instruction_sets, processor

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
_UNREADABLE = (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.InvalidArgument, ort_errors.NoModel)


def providers() -> list[str]:
    """Execution providers that this ONNX Runtime offers."""
    return list(ort.get_available_providers())


def fingerprint(device: Device) -> dict[str, str]:
    """What a latency depends on beside the model. Numbers with different fingerprints must not be mixed.

    UserError if the device's execution provider is not installed here.
    """
    if device.provider not in ort.get_available_providers():
        raise UserError(
            f"device {device.name} needs an execution provider that is not installed",
            got=device.provider,
            remedy=f"available: {', '.join(providers())}",
        )
    return {
        "runtime": f"onnxruntime {ort.__version__}",
        "provider": device.provider,
        "options": json.dumps(device.provider_options, sort_keys=True),
        "optimization": device.optimization,
        "threads": str(device.threads),
        "spinning": str(device.spinning).lower(),
        "processor": processor(),
        "instruction_sets": " ".join(instruction_sets()),
    }


def fingerprint_id(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:16]


class Session:
    """A model, loaded on a device, with an input of random numbers bound to it.

    Raises UserError if the bytes are not an ONNX model, the provider is missing or cannot run all of its operators: ONNX
    Runtime would fall back to the processor in silence, and the number would be of something else.
    """

    def __init__(self, model: bytes, device: Device, batch: int = 1) -> None:
        fingerprint(device)  # refuses a device that is not here
        options = ort.SessionOptions()
        options.intra_op_num_threads = device.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = _LEVELS[device.optimization]
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if device.spinning else "0")
        if device.provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = ort.InferenceSession(
                model, options, providers=[(device.provider, dict(device.provider_options))], enable_fallback=False
            )
        except (*_UNREADABLE, UnicodeDecodeError) as error:
            raise UserError("this is not a model that ONNX Runtime can read", got=_reason(error)) from None
        except (ort_errors.NotImplemented, ort_errors.Fail, ort_errors.RuntimeException) as error:
            raise UserError(
                f"the model has operators that {device.provider} cannot run", got=_reason(error),
                remedy="export it with supported operators, or measure it on another device",
            ) from None  # fmt: skip
        active = self._session.get_providers()[0]
        if active != device.provider:
            raise UserError(f"{device.provider} fell back in silence", got=active, remedy="check the provider's installation")
        try:
            self._binding = self._bind(batch)
        except UnicodeDecodeError as error:
            raise UserError("the names in a model are text", got=str(error)) from None
        try:
            self.run()
        except RuntimeError as error:  # ONNX Runtime's own errors are of this kind
            raise UserError(
                "the model cannot be run on made-up input", got=_reason(error), remedy="measure a model that takes any numbers"
            ) from None

    def _bind(self, batch: int) -> ort.IOBinding:
        """Random numbers bound to every input, zeros where they may be indices, and room for every output."""
        binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        for value in self._session.get_inputs():
            shape = [d if isinstance(d, int) and d > 0 else batch if i == 0 else None for i, d in enumerate(value.shape)]
            if None in shape or value.type not in _ELEMENTS:
                raise UserError(
                    "only the first dimension of an input may be symbolic, and its elements must be numbers",
                    got=f"{value.name}: {value.type} {value.shape}",
                    remedy="fix the other dimensions before measuring",
                )
            sizes, kind = [d for d in shape if d is not None], _ELEMENTS[value.type]
            floating = np.issubdtype(kind, np.floating)
            array: NDArray[Any] = rng.standard_normal(sizes).astype(kind) if floating else np.zeros(sizes, kind)
            binding.bind_cpu_input(value.name, np.ascontiguousarray(array))
        for value in self._session.get_outputs():
            binding.bind_output(value.name, "cpu")
        return binding

    def run(self) -> None:
        """One inference on the bound input."""
        self._session.run_with_iobinding(self._binding)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output for a batch of the only input."""
        (value,) = self._session.get_inputs()
        result: NDArray[np.float32] = self._session.run(None, {value.name: x})[0]
        return result


def _reason(error: Exception) -> str:
    return str(error).split(" : ")[-1].strip()
