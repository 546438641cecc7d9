"""schedule: in which order the steps of some candidates run, and where in memory their values lie.

Breadth first, all steps that are ready side by side, where a device wants much work at a time; or depth first, candidate after
candidate, where memory is short.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hwnas.supernet.fuse import Fused


@dataclass(frozen=True)
class Plan:
    """`stages` of steps, by number, in order; the steps of a stage may run side by side.

    dead: the values that nobody reads after each stage. offset: where each value lies, value_bytes: how large the memory is
    that holds them all, scratch_bytes: the most that a stage needs beside, and peak_bytes: the most that all need at once; all
    in bytes for one image. The images are at 0, until nobody reads them any more.
    """

    stages: tuple[tuple[int, ...], ...]
    dead: tuple[tuple[int, ...], ...]
    offset: dict[int, int]
    value_bytes: int
    scratch_bytes: int
    peak_bytes: int


class Schedule:
    """Of a program's candidates. For one image the input takes so many bytes, and each step for its output and beside it."""

    def __init__(self, program: Fused, input_bytes: int, step_bytes: Sequence[tuple[int, int]]) -> None:
        self.program, self._input_bytes, self._bytes = program, input_bytes, step_bytes

    @cached_property
    def _level(self) -> list[int]:
        """Of each value the steps on the longest way to it."""
        level = [0]
        for step in self.program.steps:
            level.append(1 + max(level[value] for value in step.inputs))
        return level

    def needed(self, candidates: Iterable[int]) -> dict[int, None]:
        """The steps of these candidates, one candidate's after the other's, each in the program's order."""
        steps, found = self.program.steps, dict[int, None]()
        for candidate in candidates:
            own, waiting = set[int](), [self.program.outputs[candidate]]
            while waiting:
                value = waiting.pop()
                if value and value - 1 not in found and value - 1 not in own:
                    own.add(value - 1)
                    waiting += steps[value - 1].inputs
            found.update(dict.fromkeys(sorted(own)))
        return found

    def plan(self, candidates: Sequence[int], breadth: bool) -> Plan:
        """These candidates, in this order."""
        stages = self._stages(candidates, breadth)
        last: dict[int, int] = {}
        for number, stage in enumerate(stages):
            for step in stage:
                for value in (step + 1, *self.program.steps[step].inputs):
                    last[value] = number
        last.update((self.program.outputs[c], len(stages)) for c in candidates)  # and so do the logits
        dead: list[list[int]] = [[] for _ in range(len(stages) + 1)]
        for value, number in last.items():
            dead[number].append(value)
        return Plan(tuple(map(tuple, stages)), tuple(map(tuple, dead[:-1])), *self._place(stages, dead))

    def _stages(self, candidates: Sequence[int], breadth: bool) -> list[list[int]]:
        if breadth:
            levels: dict[int, list[int]] = {}
            for step in sorted(self.needed(candidates)):
                levels.setdefault(self._level[step + 1], []).append(step)
            return [levels[level] for level in sorted(levels)]
        return [[step] for step in self.needed(candidates)]

    def _place(self, stages: Sequence[Sequence[int]], dead: Sequence[Sequence[int]]) -> tuple[dict[int, int], int, int, int]:
        """Values into the smallest gap that holds them, or at the end: where, and what is needed of each kind and at once."""
        most = 0
        top = highest = peak = self._input_bytes
        offset, size = {0: 0}, {0: top}
        gaps: list[tuple[int, ...]] = []  # (bytes, offset), none beside another
        for number, stage in enumerate(stages):
            scratch = 0
            for step in stage:
                need, more = self._bytes[step]
                scratch += more
                fits = bisect_left(gaps, (need,))
                if fits == len(gaps):
                    offset[step + 1], top = top, top + need
                else:
                    room, start = gaps.pop(fits)
                    offset[step + 1] = start
                    if room > need:
                        insort(gaps, (room - need, start + need))
                size[step + 1] = need
            highest, most, peak = max(highest, top), max(most, scratch), max(peak, top + scratch)
            top = _free(gaps, [(size[v], offset[v]) for v in dead[number]], top)
        return offset, highest, most, peak


def _free(gaps: list[tuple[int, ...]], freed: list[tuple[int, int]], top: int) -> int:
    """Returns room, neighbours joined; what lies at the end lowers the end, which is returned."""
    if not freed:
        return top
    joined: list[tuple[int, int]] = []  # (offset, bytes)
    for start, room in sorted((start, room) for room, start in (*gaps, *freed)):
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + room)
        else:
            joined.append((start, room))
    if joined and sum(joined[-1]) == top:
        top = joined.pop()[0]
    gaps[:] = sorted((room, start) for start, room in joined)
    return top
