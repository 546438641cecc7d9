"""What merging makes one value, against counting by hand; fused steps and schedules against the values they stand for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch

from hwnas.ir.arch import Arch, Node
from hwnas.ir.prims import Activation, Add, BatchNorm, Conv, Flatten, GlobalPool
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.ops.classifier import Classifier
from hwnas.ops.conv_bn import ConvBn
from hwnas.ops.mbconv import MbConv
from hwnas.ops.sum import Sum
from hwnas.spaces import make_space
from hwnas.supernet.execute import TorchExecution
from hwnas.supernet.fuse import Fused, fuse
from hwnas.supernet.merge import Program, Value, merge
from hwnas.supernet.schedule import Schedule

INPUT = TensorSpec((3, 8, 8))
SPACES = (
    "mobilenet(input=(3,16,16),classes=4,width=0.5,stages=((16,3,2),(24,2,2)),head=16)",
    "nasbench201(input=(3,8,8),classes=4,channels=4,cells=2)",
    "darts(input=(3,8,8),classes=4,channels=4,cells=3)",
)


def chain(*blocks: MbConv | ConvBn) -> Arch:
    names = [f"n{i}" for i in range(len(blocks))]
    nodes = [Node(name, op, (before,)) for name, op, before in zip(names, blocks, ["x", *names], strict=False)]
    return Arch(INPUT, (*nodes, Node("head", Classifier(4), (names[-1],))), "head")


def test_common_prefixes_are_one_and_what_follows_a_difference_is_not():
    a = chain(ConvBn(8), ConvBn(8), ConvBn(8))
    b = chain(ConvBn(8), ConvBn(8, 5), ConvBn(8))
    one, both = merge([a]), merge([a, b, a])
    length = len(one.values)
    assert both.unmerged == 3 * length
    assert len(both.values) == 2 * length - 3  # convolution, batch norm, activation of the first block
    assert both.outputs[0] == both.outputs[2] != both.outputs[1]


def test_options_share_the_beginning_of_a_block_with_its_weights():
    """Kernels 3 and 5 of a bottleneck expand with the same view of the bank; of another width it is another view."""
    stem = ConvBn(8)
    a, b, c = chain(stem, MbConv(8, 3, 3)), chain(stem, MbConv(8, 5, 3)), chain(stem, MbConv(8, 3, 6))
    length = len(merge([a]).values)
    assert len(merge([a, b]).values) == 2 * length - 3 - 3
    assert len(merge([a, c]).values) == 2 * length - 3


def test_the_same_op_elsewhere_has_other_weights():
    program = merge([chain(ConvBn(3), ConvBn(3))])
    assert sum(isinstance(v.prim, Conv) for v in program.values) == 2
    assert len({w for v in program.values for w in v.weights}) == sum(len(v.weights) for v in program.values)


def test_terms_of_a_sum_in_any_order():
    def arch(*terms: str) -> Arch:
        nodes = [Node("a", ConvBn(8), ("x",)), Node("b", ConvBn(8, 1), ("x",)), Node("s", Sum(), terms)]
        return Arch(INPUT, (*nodes, Node("head", Classifier(4), ("s",))), "head")

    program = merge([arch("a", "b"), arch("b", "a")])
    assert program.outputs[0] == program.outputs[1]


@pytest.mark.parametrize("text", SPACES)
def test_values_are_as_many_as_there_are_different_subtrees(text):
    """Written out as nested tuples, sums sorted, which is slow and needs no numbers."""
    space = make_space(text)
    rng = random.Random(0)
    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(8)])
    texts = ["x"]
    for number, value in enumerate(program.values):
        assert all(i <= number for i in value.inputs)
        inputs = [texts[i] for i in value.inputs]
        if isinstance(value.prim, Add):
            inputs.sort()
        texts.append(hashlib.sha256(repr((value.prim, value.weights, inputs)).encode()).hexdigest())
    assert len(set(texts)) == len(texts)
    assert len(program.values) < program.unmerged
    reached = needed(program, program.outputs)
    assert reached == set(range(1, len(texts)))  # nothing that no candidate needs


def needed(program: Program | Fused, outputs: Iterable[int]) -> set[int]:
    """The values that these are made of, and these."""
    steps = program.values if isinstance(program, Program) else program.steps
    found, before = set(outputs) - {0}, set()
    while found != before:
        before, found = found, found | {i for value in found for i in steps[value - 1].inputs if i}
    return found


@pytest.mark.parametrize("text", SPACES)
def test_every_convolution_and_batch_norm_is_in_one_step(text):
    space = make_space(text)
    rng = random.Random(1)
    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(5)])
    fused = fuse(program)
    assert sum(isinstance(s.prim, Conv) for s in fused.steps) == sum(isinstance(v.prim, Conv) for v in program.values)
    assert sum(s.norm is not None for s in fused.steps) == sum(isinstance(v.prim, BatchNorm) for v in program.values)
    assert len(fused.steps) < 0.8 * len(program.values)
    assert all(i <= number for number, step in enumerate(fused.steps) for i in step.inputs)


def schedule_of(fused: Fused) -> Schedule:
    return Schedule(fused, fused.input.bytes, [(step.spec.bytes, 64) for step in fused.steps])


@pytest.mark.parametrize("text", SPACES)
@pytest.mark.parametrize("breadth", [False, True])
def test_a_plan_runs_everything_once_and_no_two_live_values_overlap(text, breadth):
    space = make_space(text)
    rng = random.Random(2)
    fused = fuse(merge([simplify(space.decode(space.sample(rng))) for _ in range(6)]))
    schedule = schedule_of(fused)
    for chosen in (range(6), [4], [3, 1]):
        plan = schedule.plan(chosen, breadth)
        ran = [step for stage in plan.stages for step in stage]
        assert len(ran) == len(set(ran))
        assert {step + 1 for step in ran} == needed(fused, [fused.outputs[c] for c in chosen])
        assert set(ran) == set(schedule.needed(chosen))
        live = {0}
        for stage, dead in zip(plan.stages, plan.dead, strict=True):
            for step in stage:
                assert set(fused.steps[step].inputs) <= live  # its inputs have been computed and not been freed
            live |= {step + 1 for step in stage}
            places = sorted((plan.offset[v], plan.offset[v] + fused.spec(v).bytes) for v in live)
            assert all(a[1] <= b[0] for a, b in pairwise(places))
            assert places[-1][1] + 64 <= plan.peak_bytes
            live -= set(dead)
        assert live == {fused.outputs[c] for c in chosen}


def test_depth_first_takes_less_memory_than_breadth_first():
    space = make_space(SPACES[1])
    rng = random.Random(3)
    schedule = schedule_of(fuse(merge([simplify(space.decode(space.sample(rng))) for _ in range(12)])))
    assert schedule.plan(range(12), False).peak_bytes < schedule.plan(range(12), True).peak_bytes
    assert schedule.plan([0], False).peak_bytes <= schedule.plan(range(12), False).peak_bytes


def test_weights_name_their_place_in_the_bank():
    (value,) = [v for v in merge([chain(ConvBn(8))]).values if isinstance(v.prim, Conv)]
    assert [w.name for w in value.weights] == ["weight"]
    assert torch.Size(value.weights[0].shape) == (8, 3, 3, 3)


def test_an_activation_after_a_flattening_leaves_what_others_read_alone():
    pooled = Value(GlobalPool(), (0,), (), TensorSpec((4, 1, 1)))
    flat = Value(Flatten(), (1,), (), TensorSpec((4,)))
    active = Value(Activation("relu"), (2,), (), TensorSpec((4,)))
    plain = Value(Flatten(), (1,), (), TensorSpec((4,)))
    program = Program(TensorSpec((4, 3, 3)), (pooled, flat, active, plain), (3, 4), 5)
    images = torch.randn(5, 4, 3, 3)
    logits = TorchExecution(program, lambda weight: torch.empty(0)).logits(images, 1 << 30)
    mean = images.mean((2, 3))
    torch.testing.assert_close(logits[0].flatten(1), mean.relu())
    torch.testing.assert_close(logits[1].flatten(1), mean)
