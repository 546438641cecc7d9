"""gather: what a sum adds is computed where the sum is, if nobody else wants it.

An average pooling is made as its input is read. Once the statistics of batch norms are known, a convolution ends with the norm,
and the other terms of the sum are added to it before it is stored for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from hwnas.ir.prims import ActivationKind, Add, Conv, Pool, Prim, Zero
from hwnas.ir.tensor import TensorSpec
from hwnas.supernet.fuse import SUM, Fused, Step


@dataclass(eq=False, slots=True)
class Task(Step):
    """A step whose inputs are those of its prim, then the terms that are added to it; `last` is applied after that.

    number: of the step whose weights and statistics it has. pools: of each input 0, or the kernel of an average pooling that it
    is read through.
    """

    number: int = 0
    pools: tuple[int, ...] = ()
    last: ActivationKind | None = None


def gather(
    fused: Fused, known: bool, dense: Callable[[Prim], bool], terms: int, pooled: Collection[str | None]
) -> tuple[Fused, tuple[Task, ...]]:
    """The program whose steps are tasks, which are returned beside it.

    known: whether the statistics of batch norms are. dense: which convolutions can add terms, and at most `terms` of them, the
    convolution's own counted. pooled: activations that may be applied to what is pooled as it is read.
    """
    steps = fused.steps
    readers = [0] * (len(steps) + 1)  # of each value; one that reads it twice counts twice
    for step in steps:
        for value in step.inputs:
            readers[value] += 1
    for value in set(fused.outputs):
        readers[value] += 1
    tasks: list[Task] = []
    place = [0] * (len(steps) + 1)  # of a step's value: which task's
    waiting: dict[int, Step] = {}  # values that the sum that reads them makes itself
    zeros: set[int] = set()
    sums = {value: step for step in steps if type(step.prim) is Add for value in step.inputs}

    def simple(pool: Step) -> bool:
        """Whether what it reads can be pooled as it is read."""
        at = place[pool.inputs[0]]
        source = tasks[at - 1] if at else None
        return known or source is None or source.norm is None or source.after in pooled

    def joins(value: int, step: Step) -> bool:
        reader = sums.get(value)
        if reader is None or readers[value] > 1:
            return False
        if _keeps_size(step, fused):
            return step.norm is None and step.after is None and simple(step)
        return known and reader.norm is None and len(reader.inputs) <= terms and type(step.prim) is Conv and dense(step.prim)

    for number, step in enumerate(steps):
        value, kind = number + 1, type(step.prim)
        if (kind is Conv or kind is Pool) and joins(value, step):
            waiting[value] = step
            continue
        if kind is not Add:
            task = _task(step, number, place)
            if kind is Zero and step.norm is None and step.after is None:
                zeros.add(value)
            elif kind is Pool and _keeps_size(step, fused) and simple(step):
                task.prim, task.pools = SUM, (_kernel(step.prim),)  # a sum of one term does that faster
            tasks.append(task)
            place[value] = len(tasks)
            continue
        inputs = step.inputs
        if len(inputs) > 1:
            inputs = tuple([i for i in inputs if i not in zeros]) or inputs[:1]
            if len(inputs) == 1 and inputs[0] not in waiting and not (step.norm or step.after or step.before):
                place[value] = place[inputs[0]]
                continue
        convolutions = sorted((prim.kernel, i) for i in inputs if i in waiting and isinstance(prim := waiting[i].prim, Conv))
        own = convolutions.pop()[1] if convolutions else None  # the largest ends with the sum, the others come before it
        for _, i in convolutions:
            tasks.append(_task(waiting.pop(i), i - 1, place))
            place[i] = len(tasks)
        others = [_read(i, waiting, place) for i in inputs if i != own]
        if own is None:
            task = _task(step, number, place)
        else:
            task = _task(waiting[own], own - 1, place)
            task.last = step.after
            if any(pool for _, pool in others):  # they are a sum of their own, which a convolution would take longer to read
                tasks.append(_sum(step.spec, number, others))
                others = [(len(tasks), 0)]
            others = [(task.inputs[0], 0), *others]
        task.inputs, task.pools = tuple(i for i, _ in others), tuple(pool for _, pool in others)
        tasks.append(task)
        place[value] = len(tasks)
    return Fused(fused.input, tuple(tasks), tuple(place[o] for o in fused.outputs)), tuple(tasks)


def _sum(spec: TensorSpec, number: int, terms: list[tuple[int, int]]) -> Task:
    """Of tasks' values, each read through an average pooling if its kernel is not 0."""
    values, pools = zip(*terms, strict=True)
    return Task(SUM, values, spec, number=number, pools=pools)


def _read(value: int, waiting: dict[int, Step], place: list[int]) -> tuple[int, int]:
    """Which task's value a sum reads, and the kernel of the pooling that it reads it through, or 0."""
    pool = waiting.get(value)
    return (place[value], 0) if pool is None else (place[pool.inputs[0]], _kernel(pool.prim))


def _kernel(pool: Prim) -> int:
    assert isinstance(pool, Pool)
    return pool.kernel


def _task(step: Step, number: int, place: list[int]) -> Task:
    inputs = tuple([place[i] for i in step.inputs])
    return Task(
        step.prim, inputs, step.spec, step.weight, step.bias, step.before, step.norm, step.after, number, (0,) * len(inputs)
    )


def _keeps_size(step: Step, fused: Fused) -> bool:
    """Whether it is an average pooling whose output has the size of its input."""
    prim = step.prim
    if not (isinstance(prim, Pool) and prim.kind == "avg" and prim.stride == 1 and prim.kernel == 2 * prim.padding + 1):
        return False
    return fused.spec(step.inputs[0]).dims == step.spec.dims
