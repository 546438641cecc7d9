"""Which problem of the GPU's kernels a prim is, and how it is cut in tiles."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from hwnas.ir import prims
from hwnas.ir.prims import Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import Tiling, Window


def dims(spec: TensorSpec) -> tuple[int, int, int]:
    """Channels, height, width; a vector is an image of one pixel."""
    c, *sides = spec.dims
    h, w = sides or (1, 1)
    return c, h, w


class Problem(NamedTuple):
    """What kind of problem a prim is, the window that it moves, and how it is cut in tiles."""

    kind: str
    window: Window
    tiling: Tiling


@lru_cache(maxsize=1 << 14)
def problem_of(prim: Prim, terms: int, x: TensorSpec, y: TensorSpec) -> Problem | None:
    """For so many inputs of which x is the first, if the kernels know it."""
    kind = _kind(prim, terms, x)
    if kind is None:
        return None
    window = Window(*dims(x), *dims(y), *_window(prim, x))
    tiling = kernel.tiling(kind, window)
    return Problem(kind, window, tiling) if tiling.shared_bytes <= kernel.MAX_SHARED else None


def _kind(prim: Prim, terms: int, x: TensorSpec) -> str | None:
    match prim:
        case prims.Conv() if prim.groups == 1:
            return "dense"
        case prims.Conv() if prim.groups == prim.out == x.channels and prim.kernel**2 <= kernel.MAX_TAPS:
            return "depthwise"
        case prims.Linear() if x.elements == x.channels:
            return "dense"
        case prims.Pool():
            return prim.kind
        case prims.GlobalPool():
            return "avg"
        case prims.Add() if terms <= kernel.TERMS:
            return "add"
        case prims.Concat() if terms <= kernel.TERMS:
            return "concat"
        case prims.Scale():
            return "scale"
        case prims.Shift():
            return "shift"
        case prims.Zero():
            return "zero"
        case prims.Flatten():
            return "flatten"
        case prims.BatchNorm() | prims.Activation():
            return "add"  # of one term, where they join nothing
    return None


def _window(prim: Prim, x: TensorSpec) -> tuple[int, int, int, int, int]:
    """Kernel's height and width, stride, padding, dilation."""
    match prim:
        case prims.Conv():
            return prim.kernel, prim.kernel, prim.stride, prim.padding, prim.dilation
        case prims.Pool():
            return prim.kernel, prim.kernel, prim.stride, prim.padding, 1
        case prims.GlobalPool():
            return (*dims(x)[1:], 1, 0, 1)
    return 1, 1, 1, 0, 1


def is_dense(prim: Prim) -> bool:
    return isinstance(prim, prims.Conv) and prim.groups == 1
