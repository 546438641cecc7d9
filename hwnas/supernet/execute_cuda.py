"""Candidates of a merged program on a GPU: breadth first, whatever is ready in a few launches.

Recalibrating, a step that a batch norm follows leaves its output raw, and moments of each tile beside it; the stage's last
launch makes scale and shift of them, and whoever reads the value applies these as it loads. Once the statistics are known,
whoever writes a value applies its norm, and fewer values are written (see gather).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from hwnas.ir import prims
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels import merged_program as kernel
from hwnas.kernels.merged_program import ACTIVATIONS, NORM, PACK, PROBLEM, SHAPES, Launches, Table
from hwnas.supernet.execute import Execution, Weights
from hwnas.supernet.fuse import Fused, Step, fuse
from hwnas.supernet.gather import gather
from hwnas.supernet.merge import Program, Weight
from hwnas.supernet.problems import COLUMNS, Problems, dims, is_dense, problem_of
from hwnas.supernet.schedule import Schedule


def _padded(channels: int) -> int:
    return -(-channels // 4) * 4


_OWN = ("problem", "terms", "after", "last", "normed", "bias", "gamma", "beta", "weight", "s0", "s1", "s2", "s3")
_OPERAND = ("value", "first", "second", "channels", "pool")
_IN_ROWS = sorted({*COLUMNS, *_OWN} & set(PROBLEM.names or ()))


class Views:
    """Addresses and strides of the supernet's weights, each looked up once; dense ones packed, which takes as much again."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.weights, self.device = weights, device
        self._known: dict[Weight | None, tuple[int, ...]] = {None: (0, 0, 0, 0, 0)}
        self._packed: dict[Weight, Tensor] = {}
        self._waiting: list[tuple[int, ...]] = []
        self.problems = Problems()

    def __call__(self, weight: Weight | None) -> tuple[int, ...]:
        if weight is not None and weight not in self._known:
            tensor = self.weights(weight)
            self._known[weight] = tensor.data_ptr(), *(*tensor.stride(), 0, 0, 0)[:4]
        return self._known[weight]

    def packed(self, weight: Weight) -> tuple[int, ...]:
        """The address alone; what lies there is known once `pack` has run."""
        if weight not in self._packed:
            o, c, *kernels = weight.shape
            kernel_h, kernel_w = kernels or (1, 1)
            tensor = torch.empty(kernel.packed_floats(o, c, kernel_h * kernel_w), device=self.device)
            self._packed[weight] = tensor
            address, *strides = self(weight)
            self._waiting.append((address, tensor.data_ptr(), *strides, o, c, kernel_h, kernel_w))
        return self._packed[weight].data_ptr(), 0, 0, 0, 0

    def pack(self) -> None:
        """What has been asked for since."""
        if self._waiting:
            table = np.zeros(len(self._waiting), PACK)
            columns = list(zip(*self._waiting, strict=True))
            for name, column in zip(("weight", "packed"), columns, strict=False):
                table[name] = column
            table["weight_stride"] = np.array(columns[2:6]).T
            for name, column in zip(("o", "c", "kernel_h", "kernel_w"), columns[6:], strict=True):
                table[name] = column
            self._waiting = []
            kernel.run(kernel.prepare([(kernel.PACKS, table)], self.device))


class _Phase:
    """A program's tasks in an order, where their values lie, and of every task a row, without addresses of values.

    known: whether the statistics of batch norms are, so that whoever writes a value applies its norm.
    """

    def __init__(self, fused: Fused, views: Views, known: bool) -> None:
        self.known = known
        self.program, self.tasks = gather(fused, known, is_dense, kernel.TERMS, kernel.POOLED_ACTIVATIONS)
        self.problems = views.problems
        self.numbers = [self.problems(task, self.program.spec(task.inputs[0])) for task in self.tasks]
        self.schedule = Schedule(self.program, self)
        everyone = range(len(fused.outputs))
        self.plan = self.schedule.plan(everyone, breadth=True)
        if len(everyone) == 1:
            deep = self.schedule.plan(everyone, breadth=False)
            self.plan = min(self.plan, deep, key=lambda plan: plan.value_bytes + plan.scratch_bytes)
        self.offset = np.zeros(len(self.tasks) + 1, np.int64)
        self.offset[list(self.plan.offset)] = list(self.plan.offset.values())
        self.steps = np.array([task.number for task in self.tasks], np.int64)
        self._fill(views)

    @property
    def image_bytes(self) -> int:
        return self.plan.value_bytes + self.plan.scratch_bytes

    def _fill(self, views: Views) -> None:
        own, operands, eps = [], [], []
        nothing = (0, 0, 0, 1, 0)
        channels = [self.program.input.dims[0]]
        left = [0]  # to readers: the activation after a norm that they apply
        for task, number in zip(self.tasks, self.numbers, strict=True):
            raw = task.norm is not None and not self.known
            weight: tuple[int, ...] = (0,) * 5
            if task.weight is not None:
                weight = views.packed(task.weight) if views.problems.found[number].kind == "dense" else views(task.weight)
            gamma = beta = 0
            if task.norm:
                gamma, beta = views(task.norm.scale)[0], views(task.norm.shift)[0]
            after = ACTIVATIONS[task.after]
            terms = 0 if type(task.prim) is prims.Zero else len(task.inputs)
            own.append((
                number, terms, 0 if raw else after, ACTIVATIONS[task.last], task.norm is not None,
                views(task.bias)[0] if task.bias else 0, gamma, beta, *weight,
            ))  # fmt: skip
            eps.append(task.norm.eps if task.norm else 0.0)
            read = [(v, left[v], 0, channels[v], pool) for v, pool in zip(task.inputs, task.pools, strict=True)]
            if task.before:
                read[0] = (*read[0][:2], ACTIVATIONS[task.before], *read[0][3:])
            operands.append(read + [nothing] * (kernel.TERMS - len(read)))
            left.append(after if raw else 0)
            channels.append(task.spec.dims[0])
        columns = dict(zip(_OWN, np.array(own, np.int64).T, strict=True))
        columns |= dict(zip(COLUMNS, views.problems.table()[columns["problem"]].T, strict=True))
        self.columns = columns
        self.rows, self.norms = np.zeros(len(own), PROBLEM), np.zeros(len(own), NORM)
        for name in _IN_ROWS:
            self.rows[name] = columns[name]
        self.rows["weight_stride"] = np.stack([columns[f"s{i}"] for i in range(4)], 1)
        for name, values in zip(_OPERAND, np.moveaxis(np.array(operands, np.int64), 2, 0), strict=True):
            if name == "value":
                self.inputs = values
            else:
                self.rows["in"][name] = values
        pools, sums = self.rows["in"]["pool"], columns["shape"] == kernel.SUM
        threes = np.isin(pools, (0, 3)).all(1)
        columns["shape"] = np.where(sums & pools.any(1), np.where(threes, kernel.POOLED_SUM, kernel.MAP), columns["shape"])
        self.norms["gamma"], self.norms["beta"], self.norms["eps"] = columns["gamma"], columns["beta"], eps
        self.norms["c"] = columns["o"] * columns["normed"]

    def value_bytes(self, spec: TensorSpec) -> int:
        c, h, w = dims(spec)
        return 4 * _padded(c) * h * w

    def scratch_bytes(self, step: Step) -> int:
        """Moments of every tile, if each image had tiles of its own."""
        if step.norm is None or self.known:
            return 0
        tiling = self.problems.found[self.problems(step, self.program.spec(step.inputs[0]))].tiling
        tiles = -(-tiling.places // tiling.at_once) * tiling.parts
        return tiles * (8 * _padded(step.spec.dims[0]) + 4) + 12


def covers(program: Program) -> bool:
    """Whether the kernels know every prim, and no candidate's logits are the images."""
    found = {(id(v.prim), len(v.inputs), id(x := program.spec(v.inputs[0])), id(v.spec)): (v, x) for v in program.values}
    return all(program.outputs) and all(problem_of(v.prim, len(v.inputs), x, v.spec) for v, x in found.values())


class CudaExecution(Execution):
    """Breadth first, or depth first where a single candidate needs less memory so. Statistics lie in rows of all channels."""

    def __init__(self, program: Program, views: Views, device: torch.device) -> None:
        self.device, self.outputs = device, len(program.outputs)
        self._views = views  # which own the packed weights
        fused = fuse(program)
        self.calibrating, self.scoring = (_Phase(fused, views, known) for known in (False, True))
        views.pack()
        normed = self.calibrating.norms["c"] > 0
        widths = kernel.padded(self.calibrating.norms["c"][normed].astype(np.int64))
        self.channels = max(4, int(widths.sum()))  # of all norms
        self.first_channel = np.full(len(fused.steps), -1)  # of a step's norm, by its number, if it has one
        self.first_channel[self.calibrating.steps[normed]] = np.cumsum(widths) - widths
        self.statistics = torch.empty(0)  # [mean and variance, channels]
        self._ready: dict[tuple[int, tuple[int, ...]], tuple[Launches, Tensor, list[Tensor], Tensor]] = {}

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
            self._calibrate(batches[start : start + at_once])
        self.statistics /= len(batches)

    def _calibrate(self, batches: Sequence[Tensor]) -> None:
        """Adds each batch's means and variances to the statistics."""
        phase, size = self.calibrating, len(batches[0])
        images, coefficients = size * len(batches), self._coefficients(len(batches))
        arena = self._memory(phase, images)
        self._put(phase, arena, torch.cat(list(batches)))
        launches, scratch = self._launches(phase, phase.plan.stages, arena, coefficients, size, len(batches))
        kernel.run(launches)
        del scratch  # whoever gets this memory next uses it later on the same stream
        self.statistics += coefficients[2:].sum(1)

    def logits(self, images: Tensor, limit: int, wanted: Sequence[int] | None = None) -> Tensor:
        which = tuple(range(self.outputs) if wanted is None else wanted)
        parts = -(-len(images) // max(1, (limit - self._norm_bytes) // self.scoring.image_bytes))
        tile = -(-len(images) // parts)
        if (tile, which) not in self._ready:
            self._ready = {}
            self._ready[tile, which] = self._prepare(tile, which)
        launches, arena, outputs, _ = self._ready[tile, which]
        found = []
        for part in range(parts):
            start = min(part * tile, len(images) - tile)  # the last tile begins earlier: all are of one size
            self._put(self.scoring, arena, images[start : start + tile])
            kernel.run(launches)
            found.append(torch.stack(outputs)[:, part * tile - start :])
        return torch.cat(found, 1)

    def _prepare(self, tile: int, which: tuple[int, ...]) -> tuple[Launches, Tensor, list[Tensor], Tensor]:
        """Launches, the memory they work in, in it each candidate's logits [tile, classes], and the norms' coefficients."""
        phase, arena, coefficients = self.scoring, self._memory(self.scoring, tile), self._coefficients(1)
        norms = self._norms(self.calibrating, np.flatnonzero(self.calibrating.norms["c"]), coefficients)
        if len(norms):
            channel = norms["scale"] - coefficients[0].data_ptr()
            one = torch.ones(1, device=self.device)
            norms["mean"], norms["m2"] = (row.data_ptr() + channel for row in self.statistics)
            norms["tiles"] = norms["groups"] = 1
            norms["pixels"] = one.data_ptr()
            kernel.run(kernel.prepare([(kernel.NORMS, norms)], self.device))
        needed = set(chain(*(phase.schedule.needed(i) for i in which)))
        stages = [[task for task in stage if task in needed] for stage in phase.plan.stages]
        launches, _ = self._launches(phase, [s for s in stages if s], arena, coefficients, tile, 1)
        outputs = []
        for i in which:
            value = phase.program.outputs[i]
            classes = phase.program.spec(value).dims[0]
            start = tile * int(phase.offset[value]) // 4
            lines = arena[start : start + tile * _padded(classes)].view(tile, -1)
            outputs.append(lines[:, :classes])
        return launches, arena, outputs, coefficients

    def _put(self, phase: _Phase, arena: Tensor, images: Tensor) -> None:
        """The images go where value 0 lies."""
        c, h, w = dims(phase.program.input)
        place = arena[: len(images) * h * w * _padded(c)].view(len(images), h, w, -1)
        place[..., c:] = 0
        place[..., :c] = images.view(len(images), c, h, w).permute(0, 2, 3, 1)

    def _memory(self, phase: _Phase, images: int) -> Tensor:
        return torch.empty(images * phase.plan.value_bytes // 4, device=self.device)

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
    ) -> tuple[Launches, Tensor | None]:
        """Of all stages, for so many images a group; and memory for moments, where a norm wants to know its statistics."""
        tasks = np.array(list(chain(*stages)), np.int64)
        stage = np.repeat(np.arange(len(stages)), [len(s) for s in stages])
        shapes = phase.columns["shape"][tasks]
        order = np.lexsort((shapes, stage))
        tasks, stage, shapes = tasks[order], stage[order], shapes[order]
        column = {name: phase.columns[name][tasks] for name in ("places", "at_once", "parts", "flat", "normed", "o")}
        rows, inputs = phase.rows[tasks], phase.inputs[tasks]
        place = arena.data_ptr() + images * groups * phase.offset
        rows["images"], rows["groups"], rows["y"] = images, groups, place[tasks + 1]
        rows["tiles"] = tiles = -(-images * column["places"] // column["at_once"]) * column["parts"]
        flat = column["flat"] > 0
        for name in ("images", "h", "ho"):
            rows[name][flat] = 1
        for name, values in (("w", images * column["places"]), ("wo", images * column["places"]), ("tiles_x", tiles)):
            rows[name][flat] = values[flat]
        rows["in"]["x"], rows["in"]["norm_stride"] = place[inputs], self.channels
        channel = np.concatenate(([-1], self.first_channel[phase.steps]))  # of each value
        for name, part in (("scale", coefficients[0]), ("shift", coefficients[1])):
            if phase.known:
                rows[name] = np.where(channel[tasks + 1] >= 0, part.data_ptr() + 4 * channel[tasks + 1], 0)
            else:
                rows["in"][name] = np.where(channel[inputs] >= 0, part.data_ptr() + 4 * channel[inputs], 0)
        launches: list[tuple[tuple[int, int], tuple[int, Table]]] = []
        scratch = None
        if not phase.known and column["normed"].any():
            normed = column["normed"] > 0
            means = normed * groups * tiles * kernel.padded(column["o"])
            floats = 2 * means + normed * groups * kernel.padded(tiles)
            starts = np.cumsum(floats) - floats
            starts = starts - starts[np.searchsorted(stage, stage)]  # each stage writes over the one before
            scratch = torch.empty(int((starts + floats).max()), device=self.device)
            for name, behind in (("mean", 0 * means), ("m2", means), ("pixels", 2 * means)):
                rows[name] = np.where(normed, scratch.data_ptr() + 4 * (starts + behind), 0)
            norms = self._norms(phase, tasks[normed], coefficients)
            for name in ("mean", "m2", "pixels", "tiles", "groups"):
                norms[name] = rows[name][normed]
            for number in np.unique(stage[normed]):
                launches.append(((int(number), kernel.NORMS), (kernel.NORMS, norms[stage[normed] == number])))
        cuts = np.flatnonzero(np.diff(stage * SHAPES + shapes, prepend=-1))
        for first, last in zip(cuts, (*cuts[1:], len(tasks)), strict=True):
            launches.append(((int(stage[first]), int(shapes[first])), (int(shapes[first]), rows[first:last])))
        return kernel.prepare([launch for _, launch in sorted(launches, key=lambda at: at[0])], self.device), scratch
