"""The steps of a candidate program, as csrc/candidate_program/program.h has them, over buffers that are not placed yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from hwnas.ir.tensor import TensorSpec

BLOCK = 16  # channels are padded to a multiple of it
NONE = -1


def padded(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def image_floats(spec: TensorSpec) -> int:
    """What one image of it takes, channels padded."""
    channels, height, width = spec.dims
    return padded(channels) * height * width


class Kind(IntEnum):
    """As in program.h."""

    INPUT = 0
    CONV = 1
    WINOGRAD = 2
    DEPTHWISE = 3
    MAX_POOL = 4
    AVG_POOL = 5
    GLOBAL_POOL = 6
    SUM = 7
    CONCAT = 8
    ZERO = 9
    MOMENTS = 10
    OUTPUT = 11


@dataclass(frozen=True)
class View:
    """gate * activation(scale * buffer + shift)."""

    buffer: int
    affine: int = NONE
    activation: int = 0
    gate: int = NONE

    @property
    def plain(self) -> bool:
        return self == View(self.buffer)


@dataclass
class Step:
    kind: Kind
    out: int
    reads: tuple[View, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    weights: int = NONE
    bias: int = NONE
    affine: int = NONE
    activation: int = 0
    residual: int = NONE
    norm: int = NONE

    def buffers_read(self) -> Iterator[int]:
        for view in self.reads:
            yield from (b for b in (view.buffer, view.gate) if b != NONE)
        if self.residual != NONE:
            yield self.residual

    def row(self, out: int, first_read: int, residual: int, norm: int) -> tuple[int, ...]:
        window = (*self.kernel, self.stride, self.padding, self.dilation)
        after = (self.weights, self.bias, self.affine, self.activation, residual, norm)
        return (self.kind, out, first_read, len(self.reads), *window, *after)
