"""Candidates of a merged program on a GPU: breadth first, whatever is ready in a few launches.

Recalibrating, a step that a batch norm follows leaves its output raw, and moments of each tile beside it; the stage's last
launch makes scale and shift of them, and whoever reads the value applies these as it loads. Once the statistics are known,
whoever writes a value applies its norm, and fewer values are written (see gather).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import NORM, SHAPES, Launches, Table
from hwnas.supernet.execute import Execution
from hwnas.supernet.forms import Forms
from hwnas.supernet.fuse import Fused, fuse
from hwnas.supernet.gather import gather
from hwnas.supernet.merge import Program
from hwnas.supernet.problems import dims, is_dense
from hwnas.supernet.schedule import Schedule

_ABSENT = [(0,) * (kernel.TERMS - count) for count in range(kernel.TERMS + 1)]


class _Phase:
    """A program's tasks in an order, where their values lie, and of every task a row, without addresses of values.

    known: whether the statistics of batch norms are, so that whoever writes a value applies its norm.
    """

    def __init__(self, fused: Fused, forms: Forms, known: bool) -> None:
        self.known = known
        self.program, tasks = gather(fused, known, is_dense, kernel.TERMS, kernel.POOLED_ACTIVATIONS)
        specs = [fused.input, *(task.spec for task in tasks)]
        numbers = [forms(task, specs[task.inputs[0]]) for task in tasks]
        forms.settle()
        self.rows, self.beside = forms.rows[numbers], forms.beside[numbers]
        self.steps = np.array([task.number for task in tasks], np.int64)
        self.inputs = np.array([task.inputs + _ABSENT[len(task.inputs)] for task in tasks], np.int64)
        pools = np.array([task.pools + _ABSENT[len(task.pools)] for task in tasks], np.int32)
        self._fill(pools)
        self.norms = np.zeros(len(tasks), NORM)
        for name in ("gamma", "beta", "eps"):
            self.norms[name] = self.beside[name]
        self.norms["c"] = self.rows["o"] * self.beside["normed"]
        c, h, w = dims(fused.input)
        step_bytes = zip(self._value_bytes().tolist(), self._scratch_bytes().tolist(), strict=True)
        self.schedule = Schedule(self.program, 4 * int(_padded(c)) * h * w, list(step_bytes))
        everyone = range(len(fused.outputs))
        self.plan = self.schedule.plan(everyone, breadth=True)
        if len(everyone) == 1:
            deep = self.schedule.plan(everyone, breadth=False)
            self.plan = min(self.plan, deep, key=lambda plan: plan.value_bytes + plan.scratch_bytes)
        self.offset = np.zeros(len(tasks) + 1, np.int64)
        self.offset[list(self.plan.offset)] = list(self.plan.offset.values())

    def _fill(self, pools: Table) -> None:
        raw = (self.beside["normed"] > 0) & (not self.known)
        channels = np.concatenate(([self.program.input.dims[0]], self.rows["o"]))
        left = np.concatenate(
            ([0], np.where(raw, self.rows["after"], 0))
        )  # to readers: the activation after a norm that they apply
        read = self.rows["in"]
        read["first"], read["channels"], read["pool"] = left[self.inputs], channels[self.inputs], pools
        read["second"][:, 0] = self.beside["before"]
        self.rows["after"][raw] = 0
        pooled = pools.any(1) & (self.beside["shape"] == kernel.SUM)
        threes = np.isin(pools, (0, 3)).all(1)
        self.beside["shape"][pooled] = np.where(threes, kernel.POOLED_SUM, kernel.MAP)[pooled]

    @property
    def image_bytes(self) -> int:
        return self.plan.value_bytes + self.plan.scratch_bytes

    def _value_bytes(self) -> Table:
        rows = self.rows
        bytes_: Table = 4 * _padded(rows["o"]) * rows["ho"] * rows["wo"]
        return bytes_

    def _scratch_bytes(self) -> Table:
        """Moments of every tile, if each image had tiles of its own."""
        beside = self.beside
        tiles = -(-beside["places"] // beside["at_once"]) * beside["parts"]
        return np.where((beside["normed"] > 0) & (not self.known), tiles * (8 * _padded(self.rows["o"]) + 4) + 12, 0)


def _padded(channels: Table | int) -> Table:
    return kernel.padded(np.asarray(channels, np.int64))


class Room:
    """Memory that programs use one after the other in a GPU's stream: what one has written means nothing to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, device=device)

    def __call__(self, floats: int, most: int) -> Tensor:
        """So many, of at most `most`. It grows by doubling, or the allocator would keep memory of every size there was."""
        if floats > len(self._memory):
            size = max(floats, min(2 * len(self._memory), most))
            self._memory = torch.empty(0, device=self._device)  # before there is more
            try:
                self._memory = torch.empty(size, device=self._device)
            except torch.OutOfMemoryError:
                self._memory = torch.empty(floats, device=self._device)
        return self._memory[:floats]


class CudaExecution(Execution):
    """Breadth first, or depth first where a single candidate needs less memory so. Statistics lie in rows of all channels."""

    def __init__(self, program: Program, forms: Forms, room: Room) -> None:
        """`forms` own the packed weights."""
        self.device, self.outputs = forms.device, len(program.outputs)
        self._forms, self._room = forms, room
        self._fused = fuse(program)
        self.calibrating = _Phase(self._fused, forms, False)
        normed = self.calibrating.norms["c"] > 0
        widths = _padded(self.calibrating.norms["c"][normed])
        self.channels = max(4, int(widths.sum()))  # of all norms
        self.first_channel = np.full(len(self._fused.steps), -1)  # of a step's norm, by its number, if it has one
        self.first_channel[self.calibrating.steps[normed]] = np.cumsum(widths) - widths
        self.statistics = torch.empty(0)  # [mean and variance, channels]
        self._ready: dict[tuple[int, tuple[int, ...]], tuple[Launches, Tensor, list[Tensor], Tensor]] = {}

    @cached_property
    def scoring(self) -> _Phase:
        """Made while the GPU recalibrates."""
        return _Phase(self._fused, self._forms, True)

    @property
    def _norm_bytes(self) -> int:
        """Of a group's coefficients, and of the statistics."""
        return (16 + 8) * self.channels

    def memory(self, images: int) -> int:
        return images * self.calibrating.image_bytes + self._norm_bytes

    def recalibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        at_once = max(1, min(len(batches), limit // self.memory(len(batches[0]))))
        self._ready = {}
        self.statistics = torch.zeros(2, self.channels, device=self.device)
        for start in range(0, len(batches), at_once):
            self._calibrate(batches[start : start + at_once], limit)
        self.statistics /= len(batches)

    def _calibrate(self, batches: Sequence[Tensor], limit: int) -> None:
        """Adds each batch's means and variances to the statistics."""
        phase, size = self.calibrating, len(batches[0])
        images, coefficients = size * len(batches), self._coefficients(len(batches))
        arena = self._memory(phase, images, limit - self._norm_bytes * len(batches))
        self._put(phase, arena, torch.cat(list(batches)))
        kernel.run(self._launches(phase, phase.plan.stages, arena, coefficients, size, len(batches)))
        self.statistics += coefficients[2:].sum(1)

    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        which = tuple(range(self.outputs) if wanted is None else wanted)
        parts = -(-len(images) // max(1, (limit - self._norm_bytes) // self.scoring.image_bytes))
        tile = -(-len(images) // parts)
        if (tile, which) not in self._ready:
            self._ready = {}
            self._ready[tile, which] = self._prepare(tile, which, limit)
        launches, arena, outputs, _ = self._ready[tile, which]
        found = []
        for part in range(parts):
            start = min(part * tile, len(images) - tile)  # the last tile begins earlier: all are of one size
            self._put(self.scoring, arena, images[start : start + tile])
            kernel.run(launches)
            found.append(torch.stack(outputs)[:, part * tile - start :])
        return torch.cat(found, 1)

    def _prepare(self, tile: int, which: tuple[int, ...], limit: int) -> tuple[Launches, Tensor, list[Tensor], Tensor]:
        """Launches, the memory they work in, in it each candidate's logits [tile, classes], and the norms' coefficients."""
        phase, arena, coefficients = (
            self.scoring,
            self._memory(self.scoring, tile, limit - self._norm_bytes),
            self._coefficients(1),
        )
        norms = self._norms(self.calibrating, np.flatnonzero(self.calibrating.norms["c"]), coefficients)
        if len(norms):
            channel = norms["scale"] - coefficients[0].data_ptr()
            one = torch.ones(1, device=self.device)
            norms["mean"], norms["m2"] = (row.data_ptr() + channel for row in self.statistics)
            norms["tiles"] = norms["groups"] = 1
            norms["pixels"] = one.data_ptr()
            kernel.run(kernel.prepare([(norms, np.full(len(norms), kernel.NORMS))], self.device))
        needed = phase.schedule.needed(which)
        stages = [[task for task in stage if task in needed] for stage in phase.plan.stages]
        launches = self._launches(phase, [s for s in stages if s], arena, coefficients, tile, 1)
        outputs = []
        for i in which:
            value = phase.program.outputs[i]
            classes = phase.program.spec(value).dims[0]
            start = tile * int(phase.offset[value]) // 4
            lines = arena[start : start + tile * int(_padded(classes))].view(tile, -1)
            outputs.append(lines[:, :classes])
        return launches, arena, outputs, coefficients

    def _put(self, phase: _Phase, arena: Tensor, images: Tensor) -> None:
        """The images go where value 0 lies."""
        c, h, w = dims(phase.program.input)
        place = arena[: len(images) * h * w * int(_padded(c))].view(len(images), h, w, -1)
        place[..., c:] = 0
        place[..., :c] = images.view(len(images), c, h, w).permute(0, 2, 3, 1)

    def _memory(self, phase: _Phase, images: int, limit: int) -> Tensor:
        """For values, and behind them for moments."""
        return self._room(images * phase.image_bytes // 4, limit // 4)

    def _coefficients(self, groups: int) -> Tensor:
        """[scale, shift, mean, variance; groups; channels]"""
        return torch.empty(4, groups, self.channels, device=self.device)

    def _norms(self, phase: _Phase, tasks: Table, coefficients: Tensor) -> Table:
        """Rows of these tasks' norms, with places for their results."""
        norms = phase.norms[tasks]
        channel = 4 * self.first_channel[phase.steps[tasks]]
        for name, part in zip(("scale", "shift", "batch_mean", "batch_var"), coefficients, strict=True):
            norms[name] = part.data_ptr() + channel
        norms["norm_stride"] = self.channels
        return norms

    def _launches(
        self, phase: _Phase, stages: Sequence[Sequence[int]], arena: Tensor, coefficients: Tensor, images: int, groups: int
    ) -> Launches:
        """Of all stages, for so many images a group."""
        tasks = np.array(list(chain(*stages)), np.int64)
        key = np.repeat(np.arange(len(stages)), [len(s) for s in stages]) * SHAPES + phase.beside["shape"][tasks]
        order = np.argsort(key, kind="stable")
        tasks, key = tasks[order], key[order]
        rows, beside, inputs = phase.rows[tasks], phase.beside[tasks], phase.inputs[tasks]
        place = arena.data_ptr() + images * groups * phase.offset
        rows["images"], rows["groups"], rows["y"] = images, groups, place[tasks + 1]
        rows["tiles"] = tiles = -(-images * beside["places"] // beside["at_once"]) * beside["parts"]
        rows["in"]["x"], rows["in"]["norm_stride"] = place[inputs], self.channels
        channel = np.concatenate(([-1], self.first_channel[phase.steps]))  # of each value
        of = tasks + 1 if phase.known else inputs
        for name, part in (("scale", coefficients[0]), ("shift", coefficients[1])):
            (rows if phase.known else rows["in"])[name] = np.where(channel[of] >= 0, part.data_ptr() + 4 * channel[of], 0)
        tables = [(rows, key)]
        normed = beside["normed"] > 0
        if not phase.known and normed.any():
            stage = key // SHAPES
            means = normed * groups * tiles * _padded(rows["o"])
            floats = 2 * means + normed * groups * kernel.padded(tiles)
            starts = np.cumsum(floats) - floats
            starts = starts - starts[np.searchsorted(stage, stage)]  # each stage writes over the one before
            moments = arena.data_ptr() + images * groups * phase.plan.value_bytes
            assert moments + 4 * int((starts + floats).max()) <= arena.data_ptr() + 4 * len(arena)
            for name, behind in (("mean", 0 * means), ("m2", means), ("pixels", 2 * means)):
                rows[name] = np.where(normed, moments + 4 * (starts + behind), 0)
            norms = self._norms(phase, tasks[normed], coefficients)
            for name in ("mean", "m2", "pixels", "tiles", "groups"):
                norms[name] = rows[name][normed]
            tables.append((norms, stage[normed] * SHAPES + kernel.NORMS))
        return kernel.prepare(tables, self.device)
