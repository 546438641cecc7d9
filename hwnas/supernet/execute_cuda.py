"""Candidates of a merged program on a GPU: breadth first, whatever is ready in a few launches, batch norm applied by readers.

A step that a batch norm follows leaves its output raw, and moments of each tile beside it; the stage's last launch makes scale
and shift of them, and whoever reads the value applies these as it loads. So recalibration and validation are the same
launches, but for where the statistics come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hwnas.ir import prims
from hwnas.ir.prims import Prim
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import ACTIVATIONS, KINDS, NORM, PROBLEM, TILE_PIXELS, Launches, Table
from hwnas.supernet.execute import Execution, Weights
from hwnas.supernet.fuse import Fused, Step, fuse
from hwnas.supernet.merge import Program, Weight
from hwnas.supernet.schedule import Schedule


def _dims(spec: TensorSpec) -> tuple[int, int, int]:
    """Channels, height, width; a vector is an image of one pixel."""
    c, *sides = spec.dims
    h, w = sides or (1, 1)
    return c, h, w


def _padded(channels: int) -> int:
    return -(-channels // 4) * 4


def _kind(prim: Prim, terms: int, x: TensorSpec) -> str | None:
    """Which kind of problem a prim of so many inputs is, if it is any."""
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
            return (*_dims(x)[1:], 1, 0, 1)
    return 1, 1, 1, 0, 1


class Views:
    """Addresses and strides of the supernet's weights, each looked up once."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._known: dict[Weight | None, tuple[int, ...]] = {None: (0, 0, 0, 0, 0)}

    def __call__(self, weight: Weight | None) -> tuple[int, ...]:
        if weight is not None and weight not in self._known:
            tensor = self.weights(weight)
            self._known[weight] = tensor.data_ptr(), *(*tensor.stride(), 0, 0, 0)[:4]
        return self._known[weight]


class _Table:
    """Of every step a row, without the places of its inputs and outputs."""

    def __init__(self, fused: Fused, view: Views) -> None:
        known: dict[tuple[int, TensorSpec], tuple[int, ...]] = {}
        fixed, placed, operands, inputs, norms = [], [], [], [], []
        nothing = (0, 0, 1)
        for step in fused.steps:
            x = fused.spec(step.inputs[0])
            key = id(step.prim), x
            if key not in known:
                known[key] = _numbers(step, x)
            after = ACTIVATIONS[step.after]
            fixed.append((*known[key], len(step.inputs), 0 if step.norm else after))
            placed.append((view(step.bias)[0], *view(step.weight)))
            before = ACTIVATIONS[step.before]
            readers = []
            for value in step.inputs:
                source = fused.steps[value - 1] if value else None
                readers.append((ACTIVATIONS[source.after] if source and source.norm else 0, before, fused.spec(value).dims[0]))
            missing = kernel.TERMS - len(readers)
            operands.append((*readers, *[nothing] * missing))
            inputs.append((*step.inputs, *[0] * missing))
            eps, gamma, beta = step.norm or (0.0, None, None)
            norms.append((view(gamma)[0], view(beta)[0], step.spec.dims[0] if step.norm else 0, eps))
        self.rows, self.norms = np.zeros(len(fused.steps), PROBLEM), np.zeros(len(fused.steps), NORM)
        numbers = np.array(fixed, np.int32)
        for name, column in zip((*_FIXED, "terms", "after"), numbers[:, 1:].T, strict=True):
            self.rows[name] = column
        self.shapes = numbers[:, 0].astype(np.int64)
        addresses = np.array(placed, np.uint64)
        self.rows["bias"], self.rows["weight"], self.rows["weight_stride"] = addresses[:, 0], addresses[:, 1], addresses[:, 2:]
        for name, column in zip(("first", "second", "channels"), np.moveaxis(np.array(operands, np.int32), 2, 0), strict=True):
            self.rows["in"][name] = column
        self.inputs = np.array(inputs, np.int64)
        for name, values in zip(("gamma", "beta", "c", "eps"), zip(*norms, strict=True), strict=True):
            self.norms[name] = values
        self.rows["columns"] = -(-kernel.padded(self.rows["o"]) // kernel.TILE_CHANNELS[self.shapes])


_FIXED = ("kind", "c", "h", "w", "o", "ho", "wo", "kernel_h", "kernel_w", "stride", "padding", "dilation")


def _numbers(step: Step, x: TensorSpec) -> tuple[int, ...]:
    """Which kernel a step runs in, and what _FIXED names."""
    kind = _kind(step.prim, len(step.inputs), x)
    assert kind is not None
    o, ho, wo = _dims(step.spec)
    shape = kernel.dense_shape(o) if kind == "dense" else kernel.MAP
    return shape, KINDS[kind], *_dims(x), o, ho, wo, *_window(step.prim, x)


def covers(program: Program) -> bool:
    """Whether the kernels know every prim, and the logits are what a step without a norm leaves."""
    known = all(_kind(v.prim, len(v.inputs), program.spec(v.inputs[0])) for v in program.values)
    plain = all(value and not isinstance(program.values[value - 1].prim, prims.BatchNorm) for value in program.outputs)
    return known and plain


class CudaExecution(Execution):
    """Breadth first, or depth first where a single candidate needs less memory so. Statistics lie in rows of all channels."""

    def __init__(self, program: Program, views: Views, device: torch.device) -> None:
        self.fused, self.device = fuse(program), device
        self.table = _Table(self.fused, views)
        self.schedule = Schedule(self.fused, self)
        everyone = range(len(program.outputs))
        self.plan = self.schedule.plan(everyone, breadth=True)
        if len(everyone) == 1:
            deep = self.schedule.plan(everyone, breadth=False)
            self.plan = min(self.plan, deep, key=lambda plan: plan.peak_bytes)
        self.normed = np.flatnonzero(self.table.norms["c"])
        widths = kernel.padded(self.table.norms["c"][self.normed].astype(np.int64))
        self.channels = max(4, int(widths.sum()))  # of all norms
        self.first_channel = np.full(len(self.table.rows) + 1, -1)  # of a value's norm, if it has one
        self.first_channel[self.normed + 1] = np.cumsum(widths) - widths
        self.offset = np.zeros(len(self.table.rows) + 1, np.int64)
        self.offset[list(self.plan.offset)] = list(self.plan.offset.values())
        self.statistics = torch.empty(0)  # [mean and variance, channels]
        self._ready: dict[tuple[int, tuple[int, ...]], tuple[Launches, Tensor, list[Tensor], Tensor]] = {}

    def value_bytes(self, spec: TensorSpec) -> int:
        c, h, w = _dims(spec)
        return 4 * _padded(c) * h * w

    def scratch_bytes(self, step: Step) -> int:
        """Moments of every tile, and of one tile more."""
        c, h, w = _dims(step.spec)
        return 8 * _padded(c) * (h * w // int(TILE_PIXELS[:-1].min()) + 1) if step.norm else 0

    def memory(self, images: int) -> int:
        return images * self.plan.peak_bytes + 16 * self.channels

    def recalibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        size, at_once = len(batches[0]), max(1, min(len(batches), limit // self.memory(len(batches[0]))))
        found = []
        for start in range(0, len(batches), at_once):
            images = torch.cat(list(batches[start : start + at_once]))
            groups = len(images) // size
            arena, coefficients = self._memory(len(images)), self._coefficients(groups)
            self._fill(arena, images)
            kernel.run(self._launches(self.plan.stages, arena, coefficients, size, groups, moments=True))
            found.append(coefficients[2:])
        self.statistics = torch.cat(found, 1).mean(1)
        self._ready = {}

    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        which = tuple(range(len(self.fused.outputs)) if wanted is None else wanted)
        parts = -(-len(images) // max(1, limit // self.plan.peak_bytes))
        tile = -(-len(images) // parts)
        if (tile, which) not in self._ready:
            self._ready = {(tile, which): self._prepare(tile, which)}
        launches, arena, outputs, _ = self._ready[tile, which]
        found = []
        for part in range(parts):
            start = min(part * tile, len(images) - tile)  # the last tile begins earlier: all are of one size
            self._fill(arena, images[start : start + tile])
            kernel.run(launches)
            found.append(torch.stack(outputs)[:, part * tile - start :])
        return torch.cat(found, 1)

    def _prepare(self, tile: int, which: tuple[int, ...]) -> tuple[Launches, Tensor, list[Tensor], Tensor]:
        """Launches, the memory they work in, in it each candidate's logits [tile, classes], and the norms' coefficients."""
        fused, arena, coefficients = self.fused, self._memory(tile), self._coefficients(1)
        norms = self._norms(self.normed, coefficients)
        channel = 4 * self.first_channel[self.normed + 1]
        norms["mean"], norms["m2"] = self.statistics[0].data_ptr() + channel, self.statistics[1].data_ptr() + channel
        norms["pixels"] = norms["tiles"] = norms["tile_pixels"] = norms["groups"] = 1
        if len(norms):
            kernel.run(kernel.prepare([(kernel.NORMS, norms)], self.device))
        needed = set(chain(*(self.schedule.needed(i) for i in which)))
        stages = [[step for step in stage if step in needed] for stage in self.plan.stages]
        launches = self._launches([s for s in stages if s], arena, coefficients, tile, 1, moments=False)
        outputs = []
        for i in which:
            value = fused.outputs[i]
            classes = fused.spec(value).dims[0]
            start = tile * int(self.offset[value]) // 4
            lines = arena[start : start + tile * _padded(classes)].view(tile, -1)
            outputs.append(lines[:, :classes])
        return launches, arena, outputs, coefficients

    def _fill(self, arena: Tensor, images: Tensor) -> None:
        """The images go where value 0 lies."""
        c, h, w = _dims(self.fused.input)
        place = arena[: len(images) * h * w * _padded(c)].view(len(images), h, w, -1)
        place[..., c:] = 0
        place[..., :c] = images.view(len(images), c, h, w).permute(0, 2, 3, 1)

    def _memory(self, images: int) -> Tensor:
        return torch.empty(images * self.plan.peak_bytes // 4, device=self.device)

    def _coefficients(self, groups: int) -> Tensor:
        """[scale, shift, mean, variance; groups; channels]"""
        return torch.empty(4, groups, self.channels, device=self.device)

    def _norms(self, steps: Table, coefficients: Tensor) -> Table:
        """Rows of these steps' norms, with places for their results."""
        norms = self.table.norms[steps]
        channel = 4 * self.first_channel[steps + 1]
        for name, part in zip(("scale", "shift", "batch_mean", "batch_var"), coefficients, strict=True):
            norms[name] = part.data_ptr() + channel
        norms["norm_stride"] = self.channels
        return norms

    def _launches(
        self, stages: Sequence[Sequence[int]], arena: Tensor, coefficients: Tensor, images: int, groups: int, moments: bool
    ) -> Launches:
        """Of all stages, for so many images a group; with moments where a norm wants to know its statistics."""
        p = self.table
        total = images * groups
        steps = np.array(list(chain(*stages)), np.int64)
        stage = np.repeat(np.arange(len(stages)), [len(s) for s in stages])
        order = np.lexsort((p.shapes[steps], stage))
        steps, stage = steps[order], stage[order]
        rows, shapes = p.rows[steps], p.shapes[steps]
        place = arena.data_ptr() + total * self.offset
        rows["images"], rows["groups"], rows["y"] = images, groups, place[steps + 1]
        rows["tiles"] = -(-images * rows["ho"].astype(np.int64) * rows["wo"] // TILE_PIXELS[shapes])
        inputs = p.inputs[steps]
        channel = self.first_channel[inputs]
        for name, part in (("scale", coefficients[0]), ("shift", coefficients[1])):
            rows["in"][name] = np.where(channel >= 0, part.data_ptr() + 4 * channel, 0)
        rows["in"]["x"], rows["in"]["norm_stride"] = place[inputs], self.channels
        tables: list[tuple[tuple[int, int], tuple[int, Table]]] = []
        if moments:
            normed = self.first_channel[steps + 1] >= 0
            floats = normed * groups * rows["tiles"].astype(np.int64) * kernel.padded(rows["o"])
            starts = np.cumsum(floats) - floats
            begins = starts[np.searchsorted(stage, stage)]  # each stage writes over the one before
            scratch = torch.empty(2, int((starts + floats - begins).max(initial=1)), device=self.device)
            for name, part in zip(("mean", "m2"), scratch, strict=True):
                rows[name] = np.where(normed, part.data_ptr() + 4 * (starts - begins), 0)
            norms = self._norms(steps[normed], coefficients)
            for name in ("mean", "m2", "tiles", "groups"):
                norms[name] = rows[name][normed]
            norms["tile_pixels"] = TILE_PIXELS[shapes[normed]]
            norms["pixels"] = images * rows["ho"][normed].astype(np.int64) * rows["wo"][normed]
            for number in np.unique(stage[normed]):
                tables.append(((int(number), kernel.NORMS), (kernel.NORMS, norms[stage[normed] == number])))
            self._scratch = scratch
        cuts = np.flatnonzero(np.diff(stage * len(TILE_PIXELS) + shapes, prepend=-1))
        for first, last in zip(cuts, (*cuts[1:], len(steps)), strict=True):
            tables.append(((int(stage[first]), int(shapes[first])), (int(shapes[first]), rows[first:last])))
        return kernel.prepare([table for _, table in sorted(tables, key=lambda t: t[0])], self.device)
