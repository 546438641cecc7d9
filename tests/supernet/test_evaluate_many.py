"""Merged candidates against the same candidates one by one: derived networks, recalibrated and evaluated on their own."""

from __future__ import annotations

import random
import re
import weakref
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uneven import uneven

from hwnas.data import SearchData
from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import to_torch
from hwnas.space import Genotype, Space
from hwnas.spaces import make_space
from hwnas.supernet import evaluate as module
from hwnas.supernet import executions
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate, evaluate_many, recalibrate
from hwnas.supernet.execute import Execution, TorchExecution, in_parts
from hwnas.supernet.merge import merge
from hwnas.supernet.race import Race
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation, Tally, look

CALIBRATION = {"batch_size": 10, "batches": 3, "seed": 4}


@pytest.fixture(scope="module")
def supernet(small_space) -> Supernet:
    return uneven(Supernet(small_space, seed=1), torch.Generator().manual_seed(1))


def sample(space: Space, count: int, seed: int = 0) -> list[Genotype]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(count)]


def one_by_one(supernet: Supernet, genotype: Genotype, data: SearchData) -> Evaluation:
    network = to_torch(simplify(supernet.space.decode(genotype)), derive(supernet, genotype))
    recalibrate(network, data.train, **CALIBRATION)
    return evaluate(network, data.validation)


def close(found: list[Evaluation], expected: list[Evaluation]) -> bool:
    return len(found) == len(expected) and all(
        np.allclose(astuple(a), astuple(b), rtol=1e-5) for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(executions.execute_cpu, "covers", lambda program: False)
    return request.param


def test_many_are_each_by_itself(small_space, supernet, small_data, way):
    genotypes = sample(small_space, 9)
    genotypes += genotypes[:2]  # twice the same
    expected = [one_by_one(supernet, g, small_data) for g in genotypes]
    assert close(evaluate_many(supernet, genotypes, small_data, **CALIBRATION), expected)
    assert len({e.loss for e in expected}) > 4  # or nothing would be shown


def test_none_at_all(supernet, small_data):
    assert evaluate_many(supernet, [], small_data) == []


def test_the_supernet_stays_as_it_is(small_space, supernet, small_data, state_of, way):
    before = state_of(supernet)
    evaluate_many(supernet, sample(small_space, 3), small_data, **CALIBRATION)
    assert all(torch.equal(before[name], value) for name, value in state_of(supernet).items())


def least(supernet: Supernet, chosen: list[Genotype], data: SearchData) -> int:
    with pytest.raises(UserError, match="by itself") as refused:
        evaluate_many(supernet, chosen, data, **CALIBRATION, memory_limit=1)
    found = re.search(r"allow (\d+) bytes", str(refused.value))
    assert found
    return int(found[1])


def test_any_memory_that_one_candidate_fits_into_gives_the_same(small_space, supernet, small_data, way, monkeypatch):
    genotypes = sample(small_space, 7)
    expected = [one_by_one(supernet, g, small_data) for g in genotypes]
    needed = least(supernet, genotypes, small_data)
    sizes = []
    in_parts = module.in_parts

    def counted(*arguments):
        for candidates, part in in_parts(*arguments):
            assert part.memory(10) <= arguments[2]
            sizes.append(len(candidates))
            yield candidates, part

    monkeypatch.setattr(module, "in_parts", counted)
    parts = []
    for limit in (needed, needed * 3 // 2, 100 * needed):
        sizes.clear()
        assert close(evaluate_many(supernet, genotypes, small_data, **CALIBRATION, memory_limit=limit), expected)
        assert sum(sizes) == len(genotypes)
        parts.append(len(sizes))
    assert parts[0] >= parts[1] >= parts[2] == 1


class Sized(Execution):
    def __init__(self, size: int) -> None:
        self.size = size

    def memory(self, images):
        return self.size * images

    def recalibrate(self, batches, limit):
        raise NotImplementedError

    def logits(self, images, limit, wanted=None):
        raise NotImplementedError


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    limit=st.integers(1, 60),
    at_most=st.none() | st.integers(1, 20),
)
def test_parts_are_as_large_as_the_limit_allows(sizes, limit, at_most):
    """Candidates that share nothing, three images at a time."""

    def load(candidates):
        return Sized(sum(sizes[c] for c in candidates))

    order = list(reversed(range(len(sizes))))
    if 3 * max(sizes) > limit:
        with pytest.raises(UserError, match=f"allow {3 * max(sizes)} bytes"):
            list(in_parts(order, load, limit, 3, at_most))
        return
    parts = list(in_parts(order, load, limit, 3, at_most))
    assert [c for part, _ in parts for c in part] == order
    assert all(part.size == sum(sizes[c] for c in chosen) and part.memory(3) <= limit for chosen, part in parts)
    assert all(len(chosen) <= (at_most or len(sizes)) for chosen, _ in parts)
    taken = [len(chosen) for chosen, _ in parts]
    if at_most is None and len(set(sizes)) == 1:
        most = limit // (3 * sizes[0])
        assert taken == [most] * (len(sizes) // most) + [len(sizes) % most] * (len(sizes) % most > 0)


def test_first_parts_are_smaller_where_others_are_prepared_meanwhile():
    parts = in_parts(range(256), lambda candidates: Sized(len(candidates)), 1 << 20, 1, 64)
    assert [len(chosen) for chosen, _ in parts] == [8, 12, 18, 27, 41, 62, 64, 24]


def watch(monkeypatch, peaks: list[int]) -> None:
    """Counted from outside: after every step, the bytes of all values that are still referred to."""
    alive: dict[int, tuple[weakref.ref, int]] = {}
    apply = TorchExecution._apply

    def watched(self: TorchExecution, *arguments):
        y = apply(self, *arguments)
        alive[id(y)] = weakref.ref(y), y.numel() * 4
        peaks.append(sum(size for ref, size in alive.values() if ref() is not None))
        return y

    monkeypatch.setattr(TorchExecution, "_apply", watched)


def test_memory_of_the_torch_way_is_what_tensors_hold(small_space, supernet, small_data, monkeypatch):
    monkeypatch.setattr(executions.execute_cpu, "covers", lambda program: False)
    chosen = sample(small_space, 5)
    needed, peaks = least(supernet, chosen, small_data), []
    watch(monkeypatch, peaks)
    evaluate_many(supernet, chosen, small_data, **CALIBRATION, memory_limit=needed)
    assert 0 < max(peaks) <= needed


def test_a_race_keeps_what_it_finishes_and_says_how_far_the_others_came(small_space, supernet, small_data, way):
    chosen = sample(small_space, 8, seed=2)
    full = evaluate_many(supernet, chosen, small_data, **CALIBRATION)
    raced = evaluate_many(supernet, chosen, small_data, **CALIBRATION, race=Race(error=0.9, looks=3))
    images = len(small_data.validation)
    finished = [i for i, found in enumerate(raced) if found.images == images]
    assert finished
    assert close([raced[i] for i in finished], [full[i] for i in finished])
    assert all(found.images in (images // 8, images // 4, images // 2, images) for found in raced)


def test_a_hopeless_candidate_is_stopped(small_space, supernet, make_split, monkeypatch):
    """Candidates whose answers are set: one that knows everything, one that knows nothing, and one in between."""
    data = SearchData(make_split(45, 0), make_split(240, 1))
    labels = torch.from_numpy(data.validation.labels)
    rng = np.random.default_rng(0)
    knows = torch.from_numpy(np.stack([np.ones(240, bool), np.zeros(240, bool), rng.random(240) < 0.98]))

    class Told(Execution):
        def memory(self, images):
            return 1

        def recalibrate(self, batches, limit):
            pass

        def logits(self, images, limit, wanted=None):
            which = list(range(3)) if wanted is None else list(wanted)
            number = torch.cat([(torch.from_numpy(data.validation.images) == x).flatten(1).all(1).nonzero()[0] for x in images])
            answers = torch.where(knows[which][:, number], labels[number], (labels[number] + 1) % 3)
            return torch.nn.functional.one_hot(answers, 3).float()

    monkeypatch.setattr(module, "executor", lambda weights, device: lambda program: Told())
    monkeypatch.setattr(module, "in_parts", lambda candidates, load, *rest: [([0, 1, 2], load(candidates))])
    found = evaluate_many(supernet, sample(small_space, 3), data, **CALIBRATION, race=Race())
    assert [e.images for e in found] == [240, 15, 240]
    assert found[0].accuracy == 1
    assert found[1].accuracy == 0
    assert found[2].accuracy == float(knows[2].double().mean())


def test_whoever_was_stopped_is_never_put_before_the_best_that_finished():
    """It was stopped for being behind a third, who then fell back: by comparison with the best it would come first."""
    tally, labels = Tally(2), torch.zeros(400, dtype=torch.long)
    best = torch.zeros(400, 2)
    best[:, 1] = 1.0  # wrong
    best[::2] = torch.tensor([1.0, 0.0])  # every second image right
    tally.add([0], look(best[None], labels))
    tally.add([1], look(torch.tensor([1.0, 0.0]).expand(1, 200, 2), labels[:200]))  # all right of those that it has seen
    finished, stopped = tally.evaluations()
    assert (finished.accuracy, finished.images) == (0.5, 400)
    assert stopped.images == 200
    assert stopped.accuracy == pytest.approx(0.5 - 1 / 400)


def test_some_candidates_keep_within_the_memory_even_if_they_need_more_than_all(monkeypatch):
    """A race goes on with fewer candidates, whose order leaves other gaps."""
    space = make_space("mobilenet(input=(3,16,16),classes=3,stages=((8,2,2),(16,2,2)),se=True)")
    supernet, rng = Supernet(space), random.Random(7)
    program = merge([simplify(space.decode(space.sample(rng))) for _ in range(6)])
    execution = TorchExecution(program, lambda weight: supernet.view(weight.bank, weight.shape).detach())
    some = [1, 2, 3, 4]
    assert execution.schedule.plan(some, breadth=False).peak_bytes > execution.plan.peak_bytes
    images = torch.randn(70, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    limit, peaks = 30 * execution.plan.peak_bytes, []
    with torch.inference_mode():
        execution.recalibrate([images[:30]], limit)
        expected = execution.logits(images, limit)[some]
        watch(monkeypatch, peaks)
        assert torch.equal(execution.logits(images, limit, some), expected)
    assert 0 < max(peaks) <= limit
