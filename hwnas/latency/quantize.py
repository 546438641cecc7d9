"""quantize: an ONNX model in int8, statically: activations unsigned, weights signed and per channel (U8S8).

Quantise and dequantise nodes (QDQ) around every operator, which the runtime fuses into integer kernels. On x86 with VNNI the
other combinations of signs are slower than float32. Batch norms are folded into convolutions first, as the runtime would.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from hwnas.errors import UserError
from hwnas.latency.session import made_up

_WARNING, _ERROR = 2, 3  # severities of ONNX Runtime's log; the first is its default
CALIBRATION = 4  # made-up inputs; the latency does not depend on the ranges that they give

Inputs = dict[str, NDArray[Any]]  # by name, each a batch


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out inputs for calibration."""

    def __init__(self, inputs: Iterable[Inputs]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> Inputs | None:
        return next(self._left, None)


@lru_cache(maxsize=128)  # a profile visits each network several times
def quantize(model: bytes) -> bytes:
    """The model in int8 to be measured, calibrated on seeded random input. One that is quantised already is returned as it is.

    UserError if the model cannot be quantised.
    """
    loaded = _loaded(model)
    if is_quantized(loaded):
        return model
    inputs = [_random(value) for value in _inputs(loaded)]
    return _quantized(loaded, [{name: draws[i] for name, draws in inputs} for i in range(CALIBRATION)])


def quantize_calibrated(model: bytes, images: NDArray[np.float32]) -> bytes:
    """The model in int8 to be used: ranges are those that images [n, *dims] give its activations. Metadata stay.

    UserError if the model cannot be quantised.
    """
    loaded = _loaded(model)
    (value,) = _inputs(loaded)
    return _quantized(loaded, ({value.name: image[None]} for image in images))


def is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _loaded(model: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(model)
    except DecodeError as error:
        raise UserError("the model cannot be quantised", got=f"{type(error).__name__}: {error}") from None


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _quantized(model: onnx.ModelProto, inputs: Iterable[Inputs]) -> bytes:
    try:
        with tempfile.TemporaryDirectory() as folder, _silence():
            folded, path = Path(folder) / "folded.onnx", Path(folder) / "int8.onnx"
            _fold(model.SerializeToString(), folded)
            quantize_static(
                folded, path, _Reader(inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            result = onnx.load(path)
    except Exception as error:  # the quantiser raises whatever it meets
        raise UserError("the model cannot be quantised", got=f"{type(error).__name__}: {error}") from None
    onnx.helper.set_model_props(result, {entry.key: entry.value for entry in model.metadata_props})
    content: bytes = result.SerializeToString()
    return content


def _fold(model: bytes, path: Path) -> None:
    """Writes the model with batch norms folded and constants computed."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _random(value: onnx.ValueInfoProto) -> tuple[str, list[NDArray[Any]]]:
    """An input's name and batches of one for it."""
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    first = made_up(value.name, [d.dim_value or None for d in tensor.shape.dim], kind, 1)
    if not np.issubdtype(kind, np.floating):
        return value.name, [first] * CALIBRATION
    rng = np.random.default_rng(1)
    return value.name, [rng.standard_normal(first.shape).astype(kind) for _ in range(CALIBRATION)]


@contextmanager
def _silence() -> Iterator[None]:
    """Without the quantiser's advice, which goes to the root logger, and ONNX Runtime's warnings of what it tidies up."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(_ERROR)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)
        logging.disable(before)
