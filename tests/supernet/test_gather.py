"""Gathered programs compute what the steps compute: a plain interpreter of tasks against PyTorch's execution of the program."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hwnas.ir.prims import Add, Conv, Linear, Pool
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import ACTIVATIONS, Mode, apply_prim
from hwnas.spaces import make_space
from hwnas.supernet.execute import TorchExecution
from hwnas.supernet.fuse import fuse
from hwnas.supernet.gather import gather
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet

SPACES = (
    "nasbench201(input=(3,8,8),channels=4,cells=2)",
    "darts(input=(3,8,8),cells=3,affine=True)",
    "mobilenet(input=(3,16,16),classes=5,width=0.25,se=True,act='hardswish',head=24,stages=((24,3,2),(32,2,2)),expansions=(1,3))",
)


def dense(prim):
    return isinstance(prim, Conv) and prim.groups == 1


def average(x, kernel):
    return F.avg_pool2d(x, kernel, 1, kernel // 2, count_include_pad=False) if kernel else x


def interpreted(fused, tasks, weights, statistics, images):
    """Logits, by these means and variances of the steps' norms."""
    values = [images]
    for task in tasks:
        xs = [average(values[i], pool) for i, pool in zip(task.inputs, task.pools, strict=True)]
        own = xs[:1] if dense(task.prim) else xs
        if task.before:
            own = [ACTIVATIONS[task.before](own[0])]
        if isinstance(task.prim, Linear):
            own = [own[0].flatten(1)]
        found = {w.name: weights(w) for w in (task.weight, task.bias) if w}
        y = apply_prim(task.prim, own, found.__getitem__, Mode(training=False))
        if task.norm:
            affine = (weights(task.norm.scale), weights(task.norm.shift)) if task.norm.scale else (None, None)
            y = F.batch_norm(y, *statistics[task.number], *affine, False, 0.0, task.norm.eps)
        if task.after:
            y = ACTIVATIONS[task.after](y)
        for term in xs[1:] if dense(task.prim) else ():
            y = y + term
        values.append(ACTIVATIONS[task.last](y) if task.last else y)
    return torch.stack([values[o].flatten(1) for o in fused.outputs])


@pytest.mark.parametrize("text", SPACES)
@pytest.mark.parametrize("known", [False, True])
def test_tasks_compute_what_steps_compute(text, known):
    space = make_space(text)
    supernet, rng = Supernet(space).double(), random.Random(0)
    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(6)])

    def weights(weight):
        return supernet.view(weight.bank, weight.shape).detach()

    images = torch.randn(8, *space.input.dims, dtype=torch.float64)
    execution = TorchExecution(program, weights)
    with torch.inference_mode():
        execution.recalibrate([images], 1 << 30)
        fused = fuse(program)
        gathered, tasks = gather(fused, known, dense, 4, (None, "relu"))
        found = interpreted(gathered, tasks, weights, execution.statistics, images)
        torch.testing.assert_close(found, execution.logits(images, 1 << 30).flatten(2), rtol=1e-10, atol=1e-10)
    assert all(i <= number for number, task in enumerate(tasks) for i in task.inputs)
    assert all(len(task.inputs) <= 4 for task in tasks)


def test_poolings_and_sums_that_one_reader_wants_are_not_written():
    space = make_space(SPACES[0])
    rng = random.Random(1)
    fused = fuse(merge([simplify(space.decode(space.sample(rng))) for _ in range(6)]))
    steps = len(fused.steps)
    _, calibrating = gather(fused, False, dense, 4, (None, "relu"))
    _, scoring = gather(fused, True, dense, 4, (None, "relu"))
    assert len(scoring) < len(calibrating) < steps
    assert not any(isinstance(t.prim, Pool) and t.prim.kind == "avg" and t.prim.stride == 1 for t in scoring)
    assert any(dense(t.prim) and len(t.inputs) > 1 for t in scoring)
    assert not any(dense(t.prim) and len(t.inputs) > 1 for t in calibrating)


def test_what_may_not_be_pooled_as_it_is_read_is_pooled_by_itself():
    space = make_space("nasbench201(input=(3,8,8),channels=4,cells=1)")
    rng = random.Random(2)
    fused = fuse(merge([simplify(space.decode(space.sample(rng))) for _ in range(20)]))
    hard = replace(fused, steps=fused.steps)
    for step in hard.steps:
        if step.norm and step.after is None and not isinstance(step.prim, Add):
            step.after = "hardswish"
    gathered, tasks = gather(hard, False, dense, 4, (None, "relu"))
    for task in tasks:
        for value, pool in zip(task.inputs, task.pools, strict=True):
            assert not (pool and value and tasks[value - 1].norm and tasks[value - 1].after == "hardswish")
    assert any(isinstance(t.prim, Pool) for t in tasks)
    assert gathered.steps == tasks
