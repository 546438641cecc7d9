"""What a candidate program stores for a whole batch and what it computes again, and where in memory its buffers lie.

Statistics of a batch norm need all images of a batch, so calibration runs in phases, each of which ends in a step whose result
is stored or measured.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from hwnas.ir.tensor import TensorSpec
from hwnas.kernels.candidate_steps import NONE, Kind, Step, image_floats

# For the choice between storing and computing again: bytes a second of one core, from memory and from the last cache.
TYPICAL_BATCH = 128
CACHE_BYTES = 8 << 20
MEMORY_RATE = 8e9
CACHE_RATE = 25e9


def for_statistics(steps: Sequence[Step]) -> list[Step]:
    """The steps that some norm's statistics need."""
    kept: list[Step] = []
    needed: set[int] = set()
    for step in reversed(steps):
        if step.norm != NONE or step.out in needed:
            needed.update(step.buffers_read())
            kept.append(step)
    return kept[::-1]


def in_phases(steps: Sequence[Step], local: set[int]) -> list[list[Step]]:
    """A phase for each step whose result is stored or measured, with all that it needs of what is not stored."""
    writer = {step.out: i for i, step in enumerate(steps) if step.kind != Kind.MOMENTS}
    phases = []
    for i, step in enumerate(steps):
        if step.norm == NONE and step.out in local:
            continue
        needed, stack = {i}, [i]
        while stack:
            for buffer in steps[stack.pop()].buffers_read():
                if buffer in local and writer[buffer] not in needed:
                    needed.add(writer[buffer])
                    stack.append(writer[buffer])
        phases.append([steps[j] for j in sorted(needed)])
    return phases


def computed_again(steps: Sequence[Step], buffers: Sequence[TensorSpec]) -> set[int]:
    """The buffers that every phase computes for itself, a few images at a time, because storing them for the whole batch and
    reading them again would take longer. An estimate: the constants are of one core of a server."""
    times: dict[int, int] = {}  # how often a step runs
    readers: dict[int, list[int]] = {}
    again: set[int] = set()
    for i in range(len(steps) - 1, -1, -1):
        step = steps[i]
        reads = [times[j] for j in readers.get(step.out, ())] if step.kind != Kind.MOMENTS else []
        if_again = (step.norm != NONE) + sum(reads)
        times[i] = 1
        if step.kind != Kind.MOMENTS:
            size = 4 * image_floats(buffers[step.out])
            sources = sum(4 * image_floats(buffers[b]) for b in step.buffers_read())
            rate = MEMORY_RATE if size * TYPICAL_BATCH > CACHE_BYTES else CACHE_RATE
            storing = size * (2 + sum(reads)) / rate
            if (if_again - 1) * (_seconds(step, buffers) + sources / rate) < storing:
                again.add(step.out)
                times[i] = if_again
        for buffer in set(step.buffers_read()):
            readers.setdefault(buffer, []).append(i)
    return again


def _seconds(step: Step, buffers: Sequence[TensorSpec]) -> float:
    """For one image on one core."""
    taps = step.kernel[0] * step.kernel[1]
    match step.kind:
        case Kind.CONV | Kind.WINOGRAD:
            return image_floats(buffers[step.out]) * (taps * buffers[step.reads[0].buffer].channels + 8) / 80e9
        case Kind.DEPTHWISE:
            return image_floats(buffers[step.out]) * (taps + 8) / 50e9
        case _:
            return image_floats(buffers[step.out]) * (taps + 2 * len(step.reads)) / 10e9


def allocate(times: Sequence[Sequence[Step]], sizes: Sequence[int], which: set[int]) -> tuple[list[int], int]:
    """Offsets of these buffers, which share memory where their lives, from time to time, do not meet (first fit), and how much
    memory that is."""
    lives: dict[int, tuple[int, int]] = {}
    for i, steps in enumerate(times):
        for step in steps:
            for buffer in (*step.buffers_read(), *((step.out,) if step.kind not in (Kind.OUTPUT, Kind.MOMENTS) else ())):
                if buffer in which:
                    lives[buffer] = lives.get(buffer, (i, i))[0], i
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for buffer, (begin, end) in lives.items():
        begins.setdefault(begin, []).append(buffer)
        ends.setdefault(end, []).append(buffer)
    offsets = [NONE] * len(sizes)
    live: list[tuple[int, int]] = []  # (offset, size), sorted
    peak = 0
    for i in range(len(times)):
        for buffer in begins.get(i, ()):
            at = 0
            for offset, taken in live:
                if offset - at >= sizes[buffer]:
                    break
                at = offset + taken
            offsets[buffer] = at
            insort(live, (at, sizes[buffer]))
            peak = max(peak, at + sizes[buffer])
        for buffer in ends.get(i, ()):
            live.remove((offsets[buffer], sizes[buffer]))
    return offsets, peak
