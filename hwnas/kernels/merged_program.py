"""Tables of small convolutions, poolings and sums for the GPU: one launch computes many of them, whatever their shapes.

A problem is one output over inputs that lie in the same memory; it knows nothing of who else is in its launch. `PROBLEM` and
`NORM` are the rows of csrc/merged_program/merged_program.h, addresses as integers. There is no reference of the same form:
tests compare whole programs with PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas import _native

Table = NDArray[Any]

TERMS = 4  # inputs of a problem at most
MAX_TAPS = 121  # of a depthwise kernel
KINDS = {
    name: i for i, name in enumerate(("dense", "depthwise", "add", "scale", "max", "avg", "concat", "shift", "zero", "flatten"))
}
ACTIVATIONS = {
    name: i
    for i, name in enumerate(
        (None, "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "leaky_relu")
    )
}
DENSE_16, DENSE_32, DENSE_64, MAP, NORMS = range(5)  # kernels
TILE_PIXELS = np.array([_native.merged_program.tile_pixels(shape) for shape in range(5)])
TILE_CHANNELS = np.array([_native.merged_program.tile_channels(shape) for shape in range(5)])

OPERAND = np.dtype([
    ("x", "u8"), ("scale", "u8"), ("shift", "u8"), ("first", "i4"), ("second", "i4"), ("channels", "i4"), ("norm_stride", "i4"),
])  # fmt: skip
PROBLEM = np.dtype([
    ("in", OPERAND, TERMS), ("weight", "u8"), ("bias", "u8"), ("y", "u8"), ("mean", "u8"), ("m2", "u8"),
    ("weight_stride", "i8", 4), ("kind", "i4"), ("terms", "i4"), ("images", "i4"), ("groups", "i4"),
    ("c", "i4"), ("h", "i4"), ("w", "i4"), ("o", "i4"), ("ho", "i4"), ("wo", "i4"), ("kernel_h", "i4"), ("kernel_w", "i4"),
    ("stride", "i4"), ("padding", "i4"), ("dilation", "i4"), ("after", "i4"), ("tiles", "i4"), ("columns", "i4"),
])  # fmt: skip
NORM = np.dtype([
    ("mean", "u8"), ("m2", "u8"), ("gamma", "u8"), ("beta", "u8"), ("scale", "u8"), ("shift", "u8"), ("batch_mean", "u8"),
    ("batch_var", "u8"), ("pixels", "i8"), ("c", "i4"), ("groups", "i4"), ("tiles", "i4"), ("tile_pixels", "i4"),
    ("norm_stride", "i4"), ("eps", "f4"),
])  # fmt: skip
_LAUNCH = np.dtype([("shape", "i4"), ("count", "i4"), ("problems", "u8"), ("begin", "u8"), ("blocks", "i8")])
assert (PROBLEM.itemsize, NORM.itemsize, _LAUNCH.itemsize) == (
    _native.merged_program.problem_bytes, _native.merged_program.norm_bytes, _native.merged_program.launch_bytes
)  # fmt: skip


def padded(channels: Table) -> Table:
    """Channels as they lie in memory: a multiple of 4."""
    return (channels + 3) // 4 * 4


def dense_shape(channels: int) -> int:
    """Which dense kernel suits so many output channels."""
    return DENSE_16 if channels <= 16 else DENSE_32 if channels <= 32 or 64 < channels <= 96 else DENSE_64


@dataclass(frozen=True)
class Launches:
    """What `run` launches, and the memory that it refers to."""

    rows: bytes
    memory: Tensor


def prepare(stages: Sequence[tuple[int, Table]], device: torch.device) -> Launches:
    """Stages in order, each a shape and the problems (norms for `NORMS`) that it computes in one launch."""
    rows = np.zeros(len(stages), _LAUNCH)
    parts: list[bytes] = []
    offsets, length = [], 0
    for row, (shape, table) in zip(rows, stages, strict=True):
        if shape == NORMS:
            blocks = table["groups"].astype(np.int64) * -(-table["c"] // TILE_CHANNELS[NORMS])
        else:
            blocks = table["groups"].astype(np.int64) * table["tiles"] * table["columns"]
        ends = np.cumsum(blocks)
        if ends[-1] >= 1 << 31:
            raise ValueError(f"{ends[-1]} blocks are more than one launch can have")
        begin = np.concatenate(([0], ends[:-1])).astype(np.int32)
        row["shape"], row["count"], row["blocks"] = shape, len(table), ends[-1]
        data = table.tobytes(), begin.tobytes()
        offsets.append((length, length + len(data[0])))
        parts += [*data, bytes(-sum(map(len, data)) % 16)]
        length += sum(map(len, parts[-3:]))
    memory = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).to(device)
    starts = np.array(offsets, np.int64).reshape(-1, 2) + memory.data_ptr()
    rows["problems"], rows["begin"] = starts[:, 0], starts[:, 1]
    return Launches(rows.tobytes(), memory)


def run(launches: Launches) -> None:
    """On the memory's device and its current stream."""
    with torch.cuda.device(launches.memory.device):
        _native.merged_program.run_cuda(launches.rows, torch.cuda.current_stream().cuda_stream)


def available(device: torch.device) -> bool:
    return device.type == "cuda" and bool(_native.with_cuda)
