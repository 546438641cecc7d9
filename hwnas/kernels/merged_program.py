"""Tables of small convolutions, poolings and sums for the GPU: one launch computes many of them, whatever their shapes.

A problem is one output over inputs that lie in the same memory; it knows nothing of who else is in its launch. `PROBLEM`,
`NORM` and `PACK` are the rows of csrc/merged_program/merged_program.h, addresses as integers. There is no reference of the same
form: tests compare whole programs with PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas import _native

Table = NDArray[Any]

_KERNELS = _native.merged_program
TERMS: int = _KERNELS.max_terms  # inputs of a problem at most
MAX_TAPS: int = _KERNELS.max_taps  # of a depthwise kernel
MAX_SHARED = 96 << 10  # bytes of shared memory that a block may need: what GPUs since 8.6 have
_SHARED = 72 << 10, 78 << 10  # bytes that several planes, and one, should not exceed: several blocks share a multiprocessor
KINDS = {
    name: i for i, name in enumerate(("dense", "depthwise", "add", "scale", "max", "avg", "concat", "shift", "zero", "flatten"))
}
ACTIVATIONS = {
    name: i
    for i, name in enumerate(
        (None, "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "elu", "leaky_relu")
    )
}
POOLED_ACTIVATIONS = (None, "relu")  # what an operand that is pooled as it is read may have
SHAPES = 15
# Kernels; the first three for 16, 32, 64 output channels each.
DENSE, ROWS, POINT, SUM, POOLED_SUM, WINDOW, MAP, NORMS, PACKS = 0, 3, 6, 9, 10, 11, 12, 13, 14
_POINT_TURNS = 4  # tiles that a block of convolutions of one tap computes one after the other
_ROWS_CHANNELS = 64  # input channels that sums in tensor cores are exact enough for
_LIKE_SUM = {"add": SUM, "zero": SUM, "depthwise": WINDOW, "max": WINDOW, "avg": WINDOW}
_SUM_TURNS = 2  # tiles that a block of a sum computes one after the other


def _struct(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(list(fields), align=True)


def _fields(kind: str, names: str) -> list[tuple[str, str]]:
    return [(name, kind) for name in names.split()]


OPERAND = _struct(*_fields("u8", "x scale shift"), *_fields("i4", "first second channels norm_stride pool unused"))
PROBLEM = _struct(
    ("in", OPERAND, TERMS), *_fields("u8", "weight bias scale shift y mean m2 pixels"), ("weight_stride", "i8", 4),
    *_fields(
        "i4", "kind terms images groups c h w o ho wo kernel_h kernel_w stride padding dilation after last tiles "
        "turns columns tile_images tile_h tile_w tiles_y tiles_x pairs inverse_w inverse_h planes shared_bytes",
    ),
)  # fmt: skip
NORM = _struct(
    *_fields("u8", "mean m2 pixels gamma beta scale shift batch_mean batch_var"), *_fields("i4", "c groups tiles norm_stride"),
    ("eps", "f4"), ("unused", "i4"),
)  # fmt: skip
PACK = _struct(*_fields("u8", "weight packed"), ("weight_stride", "i8", 4), *_fields("i4", "o c kernel_h kernel_w"))
_LAUNCH = _struct(*_fields("i4", "shape count"), *_fields("u8", "problems begin"), *_fields("i8", "blocks shared_bytes"))
assert (PROBLEM.itemsize, NORM.itemsize, PACK.itemsize, _LAUNCH.itemsize) == (
    _KERNELS.problem_bytes, _KERNELS.norm_bytes, _KERNELS.pack_bytes, _KERNELS.launch_bytes
)  # fmt: skip


def padded(channels: Table) -> Table:
    """Channels as they lie in memory: a multiple of 4."""
    return (channels + 3) // 4 * 4


class Window(NamedTuple):
    """A step's input and output, [channels, height, width] each, and the window that it moves over the input."""

    c: int
    h: int
    w: int
    o: int
    ho: int
    wo: int
    kernel_h: int
    kernel_w: int
    stride: int
    padding: int
    dilation: int


class Tiling(NamedTuple):
    """Which kernel computes a problem and what a block of it does.

    A group of n images has ceil(n * places / at_once) * parts tiles of pixels; a block computes `turns` of them.
    inverse_w, inverse_h: see `_inverse`. tile_h, tile_w: of a convolution its rows and columns; of the others tile_w is how
    many runs of pixels there are.
    """

    shape: int
    places: int
    at_once: int
    parts: int
    columns: int
    shared_bytes: int
    tile_images: int = 1
    tile_h: int = 1
    tile_w: int = 1
    tiles_y: int = 1
    tiles_x: int = 1
    pairs: int = 1
    inverse_w: int = 0
    inverse_h: int = 0
    planes: int = 1
    turns: int = 1


def tiling(kind: str, window: Window) -> Tiling:
    return _dense(window) if kind == "dense" else _map(kind, window)


def _map(kind: str, at: Window) -> Tiling:
    quads, threads = -(-at.o // 4), _KERNELS.map_threads
    columns = -(-quads // _KERNELS.quads)
    taps = at.kernel_h * at.kernel_w * (_KERNELS.quads + 1) if kind == "depthwise" else 0
    shared = 16 * (taps + threads + _KERNELS.quads)
    places, runs = -(-at.ho // _KERNELS.run) * at.wo, threads // -(-quads // columns)
    turns = _SUM_TURNS if kind == "add" else 1
    return Tiling(_LIKE_SUM.get(kind, MAP), places, runs, 1, columns, shared, tile_w=runs, turns=turns)


def _dense(at: Window) -> Tiling:
    if at.kernel_h == at.kernel_w == 1:
        shape = POINT + _size(at.o)
        pixels, channels, _ = _KERNELS.dense_tiles[shape]
        return Tiling(shape, at.ho * at.wo, pixels, 1, -(-at.o // channels), 0, turns=_POINT_TURNS)
    if at[6:9] == (3, 3, 1) and at.dilation == 1 and at.wo % 8 == 0 and at.c <= _ROWS_CHANNELS:
        tiling = _rows(at)
        if tiling.shared_bytes <= _SHARED[1]:
            return tiling
    shape = DENSE + _size(at.o)
    pixels, channels, _ = _KERNELS.dense_tiles[shape]

    def shared(images: int, tile_h: int, tile_w: int, planes: int) -> int:
        return int(8 * pixels) + _shared(at, images, tile_h, tile_w, planes)

    tile_w = min(at.wo, 32)
    tile_h = min(at.ho, pixels // tile_w)
    images = max(1, pixels // (tile_h * tile_w)) if tile_h == at.ho and tile_w == at.wo else 1
    while shared(images, tile_h, tile_w, 1) > _SHARED[1] and images * tile_h * tile_w > 1:
        images, tile_h, tile_w = (images - 1, tile_h, tile_w) if images > 1 else (
            (1, tile_h - 1, tile_w) if tile_h > 1 else (1, 1, tile_w // 2)
        )  # fmt: skip
    tile_h = -(-at.ho // -(-at.ho // tile_h))
    blocks = -(-at.c // 16)
    fitting = (p for p in (4, 2) if p < 2 * blocks and shared(images, tile_h, tile_w, p) <= _SHARED[0])
    planes = next(fitting, 1)
    return _tiles(at, shape, shared(images, tile_h, tile_w, planes), images, tile_h, tile_w, 1, planes)


def _rows(at: Window) -> Tiling:
    """All input channels at once."""
    shape = ROWS + _size(at.o)
    pixels, _, height = _KERNELS.dense_tiles[shape]
    warps, runs = pixels // height // 16, at.wo // 8
    below = min(warps, 1 << (-(-at.ho // height) - 1).bit_length())
    pairs = warps // below
    images, tile_h = max(1, pairs * 2 // runs), below * height
    tile_w = at.wo if images > 1 else min(at.wo, pairs * 16)
    planes = next(p for p in (1, 2, 4) if 16 * p >= at.c)
    return _tiles(at, shape, _shared(at, images, tile_h, tile_w, planes), images, tile_h, tile_w, pairs, planes)


def _size(channels: int) -> int:
    """Which kernel of three: for 16, 32 or 64 channels."""
    return 0 if channels <= 16 else 1 if channels <= 32 or 64 < channels <= 96 else 2


def _shared(at: Window, images: int, tile_h: int, tile_w: int, planes: int) -> int:
    """Bytes that a tile's inputs take, and where each is read."""
    lines = images * _reach(tile_h, at.kernel_h, at) * _reach(tile_w, at.kernel_w, at)
    return 16 * -(-lines // 4) + planes * (64 * ((lines + 3) // 8 * 8 + 4) + 32)


def _tiles(at: Window, shape: int, shared: int, images: int, tile_h: int, tile_w: int, pairs: int, planes: int) -> Tiling:
    tiles_y, tiles_x = -(-at.ho // tile_h), -(-at.wo // tile_w)
    columns = -(-at.o // _KERNELS.dense_tiles[shape][1])
    inverse_w, inverse_h = _inverse(_reach(tile_w, at.kernel_w, at)), _inverse(_reach(tile_h, at.kernel_h, at))
    return Tiling(
        shape, 1, images, tiles_y * tiles_x, columns, shared, images, tile_h, tile_w, tiles_y, tiles_x, pairs,
        inverse_w, inverse_h, planes,
    )  # fmt: skip


def _inverse(divisor: int) -> int:
    """What kernels multiply by, and then shift by 20 bits, to divide numbers below 2^20 over the divisor."""
    return (1 << 20) // divisor + 1


def _reach(outputs: int, kernel: int, at: Window) -> int:
    """Rows or columns of the input that so many of the output are made of."""
    return (outputs - 1) * at.stride + (kernel - 1) * at.dilation + 1


def _columns(o: Table) -> Table:
    """Of 16 output channels each, as weights are packed: see columns_of in csrc/merged_program/pack.cuh."""
    return np.where(o <= 16, 1, -(-o // 32) * 2)


def packed_floats(o: int, c: int, taps: int) -> int:
    """What a convolution's packed weights take."""
    columns, blocks = int(_columns(np.asarray(o))), -(-c // 16)
    return 16 * columns + taps * blocks * columns * 256


@dataclass(frozen=True)
class Launches:
    """What `run` launches, and the memory that it refers to."""

    rows: bytes
    memory: Tensor


def prepare(tables: Sequence[tuple[Table, Table]], device: torch.device) -> Launches:
    """Tables of problems, norms or packs, each with a key for every row, ascending: its launch's place * SHAPES + its shape.

    Rows of one key are one launch; launches run in the order of their keys.
    """
    kinds, launches, length = [], [], 0
    for table, keys in tables:
        cuts = np.flatnonzero(np.diff(keys, prepend=-1))
        counts = np.diff(cuts, append=len(keys))
        blocks = _blocks(table)
        total = np.add.reduceat(blocks, cuts)
        if total.max() >= 1 << 31:
            raise ValueError(f"{total.max()} blocks are more than one launch can have")
        ends = np.cumsum(blocks)
        begin = ends - blocks - np.repeat(ends[cuts] - blocks[cuts], counts)
        rows = np.zeros(len(cuts), _LAUNCH)
        rows["shape"], rows["count"], rows["blocks"] = keys[cuts] % SHAPES, counts, total
        if table.dtype == PROBLEM:
            rows["shared_bytes"] = np.maximum.reduceat(table["shared_bytes"], cuts)
        rows["problems"] = length + cuts * table.itemsize
        rows["begin"] = length + table.nbytes + 4 * cuts
        kinds.append((table, begin.astype(np.int32)))
        launches.append((keys[cuts], rows))
        length += -(-(table.nbytes + 4 * len(table)) // 16) * 16
    # From pinned memory, so that nobody waits for what the GPU is working on.
    host = torch.empty(length, dtype=torch.uint8, pin_memory=device.type == "cuda")
    to = host.numpy()
    start = 0
    for table, begin in kinds:
        for part in (table, begin):
            to[start : start + part.nbytes] = part.view(np.uint8)
            start += part.nbytes
        start = -(-start // 16) * 16
    memory = host.to(device, non_blocking=True)
    keys, rows = (np.concatenate(parts) for parts in zip(*launches, strict=True))
    rows = rows[np.argsort(keys, kind="stable")]
    rows["problems"] += memory.data_ptr()
    rows["begin"] += memory.data_ptr()
    return Launches(rows.tobytes(), memory)


def _blocks(table: Table) -> Table:
    """How many blocks each row takes."""
    if table.dtype == PACK:
        return _columns(table["o"].astype(np.int64))
    if table.dtype == NORM:
        a_group: Table = -(-table["c"] // 16)
    else:
        a_group = -(-table["tiles"] // table["turns"]) * table["columns"]
    return a_group * table["groups"].astype(np.int64)


def run(launches: Launches) -> None:
    """On the memory's device and its current stream."""
    with torch.cuda.device(launches.memory.device):
        _native.merged_program.run_cuda(launches.rows, torch.cuda.current_stream().cuda_stream)


def available(device: torch.device) -> bool:
    return device.type == "cuda" and bool(_native.with_cuda)
