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
TILE_PIXELS: int = _native.merged_program.tile_pixels
TILE_CHANNELS = np.array([_native.merged_program.tile_channels(shape) for shape in range(5)])

OPERAND = np.dtype([
    ("x", "u8"), ("scale", "u8"), ("shift", "u8"), ("first", "i4"), ("second", "i4"), ("channels", "i4"), ("norm_stride", "i4"),
])  # fmt: skip
PROBLEM = np.dtype([
    ("in", OPERAND, TERMS), ("weight", "u8"), ("bias", "u8"), ("y", "u8"), ("mean", "u8"), ("m2", "u8"), ("count", "u8"),
    ("weight_stride", "i8", 4), ("kind", "i4"), ("terms", "i4"), ("images", "i4"), ("groups", "i4"),
    ("c", "i4"), ("h", "i4"), ("w", "i4"), ("o", "i4"), ("ho", "i4"), ("wo", "i4"), ("kernel_h", "i4"), ("kernel_w", "i4"),
    ("stride", "i4"), ("padding", "i4"), ("dilation", "i4"), ("after", "i4"), ("tiles", "i4"), ("columns", "i4"),
    ("tile_n", "i4"), ("tile_h", "i4"), ("tile_w", "i4"), ("depth", "i4"), ("kernel_rows", "i4"), ("unused", "i4"),
])  # fmt: skip
NORM = np.dtype([
    ("mean", "u8"), ("m2", "u8"), ("count", "u8"), ("gamma", "u8"), ("beta", "u8"), ("scale", "u8"), ("shift", "u8"),
    ("batch_mean", "u8"), ("batch_var", "u8"), ("c", "i4"), ("groups", "i4"), ("tiles", "i4"), ("norm_stride", "i4"),
    ("eps", "f4"), ("unused", "i4"),
])  # fmt: skip
_LAUNCH = np.dtype(
    [("shape", "i4"), ("count", "i4"), ("shared_bytes", "i8"), ("problems", "u8"), ("begin", "u8"), ("blocks", "i8")]
)
assert (PROBLEM.itemsize, NORM.itemsize, _LAUNCH.itemsize) == (
    _native.merged_program.problem_bytes, _native.merged_program.norm_bytes, _native.merged_program.launch_bytes
)  # fmt: skip


def padded(channels: Table) -> Table:
    """Channels as they lie in memory: a multiple of 4."""
    return (channels + 3) // 4 * 4


def dense_shape(channels: int) -> int:
    """Which dense kernel suits so many output channels."""
    return DENSE_16 if channels <= 16 else DENSE_32 if channels <= 32 or 64 < channels <= 96 else DENSE_64


_SHARED = 48 << 10, 80 << 10  # of a block: for four on a multiprocessor, and for two


def dense_tile(
    shape: int, kernel: int, stride: int, dilation: int, c: int, ho: int, wo: int
) -> tuple[int, int, int, int, int, int]:
    """Images, rows and columns of a tile; input channels and rows of the kernel at once; bytes of shared memory."""
    pitch = int(TILE_CHANNELS[shape]) + 8
    step = stride if kernel > 1 else 1

    def shared(n: int, h: int, w: int, depth: int, rows: int) -> int:
        slots = n * ((h - 1) * step + (kernel - 1) * dilation + 1) * ((w - 1) * step + (kernel - 1) * dilation + 1)
        moments = (TILE_CHANNELS[shape] // 64 * 32 + 33) * TILE_CHANNELS[shape]
        return 4 * max(slots * (depth + 4) + 2 * rows * kernel * depth * pitch, int(moments))

    w = min(wo, 32)
    h = min(ho, TILE_PIXELS // w)
    tile = TILE_PIXELS // (h * w), h, w
    for depth in (32, 16, 8):
        if depth - 8 < c and shared(*tile, depth, kernel) <= _SHARED[0]:
            return *tile, depth, kernel, shared(*tile, depth, kernel)
    rows = kernel
    while shared(*tile, 8, rows) > _SHARED[1]:
        if rows > 1 and 2 * rows * kernel * 8 * pitch * 4 > _SHARED[1] // 2:
            rows = (rows + 1) // 2
        elif tile[0] > 1:
            tile = (tile[0] + 1) // 2, h, w
        elif tile[1] > 1:
            tile = 1, (tile[1] + 1) // 2, w
        else:
            tile = 1, 1, (tile[2] + 1) // 2
    return *tile, 8, rows, shared(*tile, 8, rows)


@dataclass(frozen=True)
class Launches:
    """What `run` launches, and the memory that it refers to."""

    rows: bytes
    memory: Tensor


def prepare(stages: Sequence[tuple[int, int, Table]], device: torch.device) -> Launches:
    """Stages in order, each a shape, the shared memory of a block, and the problems (norms for `NORMS`) of one launch."""
    rows = np.zeros(len(stages), _LAUNCH)
    parts: list[bytes] = []
    offsets, length = [], 0
    for row, (shape, shared, table) in zip(rows, stages, strict=True):
        if shape == NORMS:
            blocks = table["groups"].astype(np.int64) * -(-table["c"] // TILE_CHANNELS[NORMS])
        else:
            blocks = table["groups"].astype(np.int64) * table["tiles"] * table["columns"]
        ends = np.cumsum(blocks)
        if ends[-1] >= 1 << 31:
            raise ValueError(f"{ends[-1]} blocks are more than one launch can have")
        begin = np.concatenate(([0], ends[:-1])).astype(np.int32)
        row["shape"], row["count"], row["shared_bytes"], row["blocks"] = shape, len(table), shared, ends[-1]
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
