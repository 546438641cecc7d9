"""From primitives to the fused steps of csrc/candidate_program, with a place in memory for every activation.

What a value is stays open until somebody needs it in memory. A convolution waits for the batch norm, the activation and the
sum that alone read it, and takes them along. What comes after a value in memory, such as a batch norm whose statistics are not
yet known, an activation before a convolution or the gate of a squeeze-and-excite block, is done by each reader as it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwnas import _native
from hwnas.errors import UserError
from hwnas.ir import prims
from hwnas.ir.tensor import TensorSpec
from hwnas.kernels.candidate_phases import allocate, computed_again, for_statistics, in_phases
from hwnas.kernels.candidate_steps import BLOCK, NONE, Kind, Step, View, image_floats

TILE_BYTES = 640 << 10  # of activations that a thread works on: most of a core's second cache
MOST_IMAGES = 16
MOST_PIXELS = 4096
WINOGRAD_CHANNELS: int = _native.candidate_program.winograd_channels  # at most


@dataclass(frozen=True)
class Placed:
    """A node as the plan sees it: its prim, its inputs' values (0 is the images, i + 1 the result of node i), and where its
    weights stand: packed weights and bias in the pool of weights, a batch norm's channels among those of all."""

    prim: prims.Prim
    inputs: tuple[int, ...]
    weights: int = NONE
    bias: int = NONE
    affine: int = NONE


@dataclass
class _Pending:
    """A convolution that has not been written yet, because what reads it may still join it; `done` once it has."""

    step: Step
    spec: TensorSpec
    done: View | None = None


@dataclass(frozen=True)
class Plan:
    """The tables of program.h, all int64. `batch_floats` for each image of a batch, the others for each thread."""

    steps: NDArray[np.int64]
    phases: NDArray[np.int64]
    reads: NDArray[np.int64]
    buffers: NDArray[np.int64]
    batch_floats: int
    local_floats: int
    scratch_floats: int
    sources: tuple[tuple[int, ...], ...]  # of each step: the buffers that it reads

    def wanted(self, outputs: Sequence[int]) -> NDArray[np.uint8]:
        """Marks the steps that these outputs need."""
        marks = np.zeros(len(self.steps), np.uint8)
        needed: set[int] = set()
        for i in range(len(self.steps) - 1, -1, -1):
            kind, out = self.steps[i, :2].tolist()
            if out in outputs if kind == Kind.OUTPUT else out in needed:
                marks[i] = 1
                needed.update(self.sources[i])
        return marks


def in_memory(spec: TensorSpec, nodes: Sequence[tuple[prims.Prim, tuple[int, ...]]]) -> list[TensorSpec]:
    """What each value is in memory: (channels, height, width), also where it counts as flattened, since nothing moves.

    Raises ShapeError for prims that do not fit, UserError for what would need the flattened order.
    """
    specs, kept = [spec], [spec]
    for prim, inputs in nodes:
        xs, memory = [specs[i] for i in inputs], [kept[i] for i in inputs]
        specs.append(prim.output(xs))
        reorders = isinstance(prim, prims.BatchNorm) and memory[0].dims[1:] != (1, 1) and len(xs[0].dims) == 1
        if reorders or (isinstance(prim, prims.Add) and len(set(memory)) > 1):
            raise UserError(
                f"a candidate program flattens images only for a Linear, not for {type(prim).__name__}", got=str(memory[0])
            )
        match prim:
            case prims.Linear():
                kept.append(TensorSpec((prim.out, 1, 1)))
            case prims.Flatten() | prims.Activation() | prims.BatchNorm() | prims.Add():
                kept.append(memory[0])
            case _:
                kept.append(specs[-1])
    return kept


def plan(spec: TensorSpec, nodes: Sequence[Placed], outputs: Sequence[int], constant: bool) -> Plan:
    """`constant`: statistics of batch norms are, so that they join their convolutions and the steps write the outputs; else
    the steps write statistics, and nothing else."""
    planner = _Planner(spec, nodes, outputs, constant)
    return planner.finish()


class _Planner:
    def __init__(self, spec: TensorSpec, nodes: Sequence[Placed], outputs: Sequence[int], constant: bool) -> None:
        self._constant = constant
        self._steps: list[Step] = []
        self._buffers: list[TensorSpec] = []
        self._nodes = nodes
        order = _order(nodes, outputs)
        self._readers = Counter(i for n in order for i in nodes[n].inputs) + Counter(outputs)
        self._values: dict[int, View | _Pending] = {}
        self._specs = in_memory(spec, [(n.prim, n.inputs) for n in nodes])
        self._values[0] = self._emit(Step(Kind.INPUT, self._buffer(spec), ()))
        remaining = Counter(outputs)
        for index in order:
            node = nodes[index]
            self._values[index + 1] = self._write(node, index + 1)
            if constant and remaining[index + 1]:
                self._output(index + 1, [i for i, value in enumerate(outputs) if value == index + 1])
        if constant and remaining[0]:
            self._output(0, [i for i, value in enumerate(outputs) if value == 0])

    def finish(self) -> Plan:
        sizes = [image_floats(b) for b in self._buffers]
        local = set(range(len(sizes)))
        phases = [self._steps]
        if not self._constant:
            steps = for_statistics(self._steps)
            local = computed_again(steps, self._buffers)
            phases = in_phases(steps, local)
        # Threads are at different images of a phase, so what one of its steps no longer needs is free only when the phase ends.
        offsets, batch_floats = allocate(phases, sizes, set(range(len(sizes))) - local)
        buffers = [(*b.dims, offset, False) for b, offset in zip(self._buffers, offsets, strict=True)]
        rows, ends, reads, sources, local_floats = [], [], list[tuple[int, ...]](), list[tuple[int, ...]](), 0
        for phase in phases:
            offsets, floats = allocate([[step] for step in phase], sizes, local)
            name = {NONE: NONE}  # of a buffer: each phase has its own local ones
            for step in phase:
                for buffer in (*step.buffers_read(), *((step.out,) if step.kind != Kind.OUTPUT else ())):
                    if buffer in local and buffer not in name:
                        name[buffer] = len(buffers)
                        buffers.append((*self._buffers[buffer].dims, offsets[buffer], True))
                    else:
                        name.setdefault(buffer, buffer)
            for step in phase:
                out = step.out if step.kind == Kind.OUTPUT else name[step.out]
                rows.append(step.row(out, len(reads), name[step.residual], step.norm if step is phase[-1] else NONE))
                reads += [(name[v.buffer], v.affine, v.activation, name[v.gate]) for v in step.reads]
                sources.append(tuple(name[b] for b in step.buffers_read()))
            images = self._images_at_once(phase, floats)
            ends.append((len(rows), images))
            local_floats = max(local_floats, images * floats)
        return Plan(
            steps=_table(rows, 15), phases=_table(ends, 2), reads=_table(reads, 4), buffers=_table(buffers, 5),
            batch_floats=batch_floats, local_floats=local_floats,
            scratch_floats=max((self._scratch(step) for phase in phases for step in phase), default=0), sources=tuple(sources),
        )  # fmt: skip

    def _images_at_once(self, phase: Sequence[Step], local_floats: int) -> int:
        """As many as stay in a core's second cache, but no more than leave work for other threads."""
        fitting = TILE_BYTES // (4 * local_floats) if local_floats else MOST_IMAGES
        pixels = max(
            (self._buffers[s.out].dims[1] * self._buffers[s.out].dims[2] for s in phase if s.kind < Kind.MOMENTS), default=1
        )
        return max(1, min(fitting, MOST_IMAGES, MOST_PIXELS // pixels))

    def _scratch(self, step: Step) -> int:
        """Floats that a thread needs beside the arena."""
        if step.kind == Kind.CONV:
            return int(_native.candidate_program.conv_scratch)
        if step.kind == Kind.WINOGRAD:
            return int(_native.candidate_program.winograd_scratch(self._buffers[step.reads[0].buffer].dims[0]))
        if step.kind == Kind.DEPTHWISE:
            _, _, width = self._buffers[step.out].dims
            rows = (step.kernel[0] - 1) * step.dilation + 1
            return rows * ((width - 1) * step.stride + (step.kernel[1] - 1) * step.dilation + 1) * BLOCK
        return 0

    def _buffer(self, spec: TensorSpec) -> int:
        self._buffers.append(spec)
        return len(self._buffers) - 1

    def _emit(self, step: Step) -> View:
        self._steps.append(step)
        return View(step.out)

    def _view(self, value: int) -> View:
        """The value as something in memory, seen through what its readers do."""
        known = self._values[value]
        if isinstance(known, View):
            return known
        if known.done is None:
            known.step.out = self._buffer(known.spec)
            known.done = self._emit(known.step)
        return known.done

    def _plain(self, view: View) -> View:
        return view if view.plain else self._sum((view,))

    def _sum(self, views: tuple[View, ...]) -> View:
        return self._emit(Step(Kind.SUM, self._buffer(self._buffers[views[0].buffer]), views))

    def _output(self, value: int, results: list[int]) -> None:
        view = self._plain(self._view(value))
        self._values[value] = view
        for result in results:
            self._steps.append(Step(Kind.OUTPUT, result, (view,)))

    def _open(self, value: int) -> _Pending | None:
        """The convolution behind a value, if it may still take something along."""
        known = self._values[value]
        return known if isinstance(known, _Pending) and known.done is None and self._readers[value] == 1 else None

    def _write(self, node: Placed, value: int) -> View | _Pending:
        match node.prim:
            case prims.Conv() | prims.Linear():
                return self._conv(node, value)
            case prims.BatchNorm():
                return self._batch_norm(node, node.prim)
            case prims.Activation():
                return self._activation(node, prims.ACTIVATIONS.index(node.prim.kind) + 1)
            case prims.Add():
                return self._add(node)
            case prims.Scale():
                gate = self._plain(self._view(node.inputs[1]))
                view = self._view(node.inputs[0])
                return replace(view if view.gate == NONE else self._plain(view), gate=gate.buffer)
            case prims.Flatten():
                return self._values[node.inputs[0]] if self._readers[node.inputs[0]] == 1 else self._view(node.inputs[0])
            case prims.Pool():
                p = node.prim
                kind = Kind.MAX_POOL if p.kind == "max" else Kind.AVG_POOL
                step = Step(kind, self._buffer(self._specs[value]), self._reads(node), (p.kernel,) * 2, p.stride, p.padding)
                return self._emit(step)
            case prims.GlobalPool():
                return self._emit(Step(Kind.GLOBAL_POOL, self._buffer(self._specs[value]), self._reads(node)))
            case prims.Concat():
                return self._emit(Step(Kind.CONCAT, self._buffer(self._specs[value]), self._reads(node)))
            case prims.Shift():
                step = Step(
                    Kind.DEPTHWISE, self._buffer(self._specs[value]), self._reads(node), padding=-1, weights=node.weights
                )
                return self._emit(step)
            case prims.Zero():
                return self._emit(Step(Kind.ZERO, self._buffer(self._specs[value]), ()))
            case _:
                raise NotImplementedError(f"{type(node.prim).__name__} has no step in a candidate program")

    def _reads(self, node: Placed) -> tuple[View, ...]:
        return tuple(self._view(i) for i in node.inputs)

    def _conv(self, node: Placed, value: int) -> _Pending:
        (view,) = self._reads(node)
        if isinstance(node.prim, prims.Linear):  # a window as large as what was flattened
            _, height, width = self._specs[node.inputs[0]].dims
            step = Step(Kind.CONV, NONE, (view,), (height, width), weights=node.weights, bias=node.bias)
            return _Pending(step, self._specs[value])
        p = node.prim
        assert isinstance(p, prims.Conv)
        x = self._specs[node.inputs[0]]
        kind = Kind.DEPTHWISE if is_depthwise(p, x.channels) else Kind.WINOGRAD if is_winograd(p, x) else Kind.CONV
        step = Step(kind, NONE, (view,), (p.kernel,) * 2, p.stride, p.padding, p.dilation, node.weights, node.bias)
        return _Pending(step, self._specs[value])

    def _batch_norm(self, node: Placed, prim: prims.BatchNorm) -> View | _Pending:
        (source,) = node.inputs
        pending = self._open(source)
        if self._constant and pending and pending.step.affine == NONE and pending.step.activation == 0:
            pending.step.affine = node.affine
            return pending
        view = self._view(source)
        if not (view.affine == NONE and view.activation == 0 and view.gate == NONE):
            view = self._sum((view,))
        if not self._constant:
            writer = self._steps[-1]
            if writer.out == view.buffer and writer.norm == NONE and writer.kind not in (Kind.INPUT, Kind.OUTPUT):
                writer.norm = node.affine
            else:
                self._steps.append(Step(Kind.MOMENTS, NONE, (view,), norm=node.affine))
        return replace(view, affine=node.affine)

    def _activation(self, node: Placed, activation: int) -> View | _Pending:
        (source,) = node.inputs
        pending = self._open(source)
        if pending and pending.step.activation == 0:
            pending.step.activation = activation
            return pending
        view = self._view(source)
        if view.activation != 0 or view.gate != NONE:
            view = self._sum((view,))
        return replace(view, activation=activation)

    def _add(self, node: Placed) -> View:
        """Convolutions that only this sum reads add the other terms to theirs."""
        open_terms = [p for p in (self._open(i) for i in node.inputs) if p is not None]
        others = tuple(self._view(i) for i in node.inputs if self._open(i) is None)
        if not open_terms:
            return self._sum(others)
        total = NONE
        if others:
            total = (others[0] if len(others) == 1 and others[0].plain else self._sum(others)).buffer
        for term in open_terms:
            term.step.out, term.step.residual = self._buffer(term.spec), total
            term.done = self._emit(term.step)
            total = term.step.out
        return View(total)


def is_depthwise(prim: prims.Conv, channels: int) -> bool:
    return prim.groups == channels == prim.out and channels > 1


def is_winograd(prim: prims.Conv, x: TensorSpec) -> bool:
    """Whether tiles of 2 x 2 outputs from 16 products a channel are quicker than 9 products an output: not where a vector of
    channels is hardly filled, nor where tiles reach far beyond the border."""
    if (prim.kernel, prim.stride, prim.dilation, prim.groups) != (3, 1, 1, 1) or not BLOCK <= x.channels <= WINOGRAD_CHANNELS:
        return False
    _, height, width = prim.output([x]).dims
    return 4 * -(-height // 2) * -(-width // 2) <= 1.3 * height * width


def _order(nodes: Sequence[Placed], outputs: Sequence[int]) -> list[int]:
    """The nodes that the outputs need, depth first: what is shared comes once, and what one output needs comes together."""
    order: list[int] = []
    seen: set[int] = set()
    for output in outputs:
        stack = [(output - 1, False)]
        while stack:
            index, ready = stack.pop()
            if ready:
                order.append(index)
            elif index >= 0 and index not in seen:
                seen.add(index)
                stack.append((index, True))
                stack += [(i - 1, False) for i in reversed(nodes[index].inputs)]
    return order


def _table(rows: Sequence[tuple[int, ...]], columns: int) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, columns)
