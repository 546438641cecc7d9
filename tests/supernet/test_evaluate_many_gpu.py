"""Candidates in several parts on a GPU against the same candidates one by one there."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from uneven import uneven

from hwnas.data import SearchData, Split
from hwnas.spaces import make_space
from hwnas.supernet import evaluate as module
from hwnas.supernet.evaluate import evaluate_many
from hwnas.supernet.race import Race
from hwnas.supernet.supernet import Supernet

pytestmark = pytest.mark.gpu

SPACE = "nasbench201(input=(3,16,16),classes=4,channels=8,cells=1)"
CALIBRATION = {"batch_size": 20, "batches": 2, "seed": 1}
DEVICES = [f"cuda:{i}" for i in range(max(1, torch.cuda.device_count()))]


def split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.standard_normal((count, 3, 16, 16)).astype(np.float32), rng.integers(0, 4, count))


@pytest.fixture(scope="module", params=DEVICES)
def supernet(request) -> Supernet:
    return uneven(Supernet(make_space(SPACE)), torch.Generator().manual_seed(0)).to(request.param)


def test_parts_that_follow_each_other_do_not_disturb_each_other(supernet, monkeypatch):
    monkeypatch.setattr(module, "SIDE_BY_SIDE", 8)  # parts of 1, 2, 3, 5, 8 and 8
    data, rng = SearchData(split(40, 0), split(90, 1)), random.Random(0)
    genotypes = [supernet.space.sample(rng) for _ in range(27)]
    alone = [evaluate_many(supernet, [genotype], data, **CALIBRATION)[0] for genotype in genotypes]
    assert len({found.loss for found in alone}) > 20
    together = evaluate_many(supernet, genotypes, data, **CALIBRATION)
    assert [e.loss for e in together] == pytest.approx([e.loss for e in alone], rel=1e-5)
    assert [e.accuracy for e in together] == [e.accuracy for e in alone]


def test_a_race_in_little_memory_keeps_within_it(supernet):
    data, rng = SearchData(split(40, 0), split(320, 1)), random.Random(1)
    genotypes = [supernet.space.sample(rng) for _ in range(24)]
    device, limit = next(supernet.parameters()).device, 6 << 20
    full = evaluate_many(supernet, genotypes, data, **CALIBRATION, race=None)
    images = 4 * sum(split.images.size for split in (data.train, data.validation))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    raced = evaluate_many(supernet, genotypes, data, **CALIBRATION, race=Race(error=0.5), memory_limit=limit)
    grown = torch.cuda.max_memory_allocated(device) - before
    assert grown <= limit + 3 * images + (4 << 20)  # the images and copies of them; tables, packed weights
    finished = [i for i, found in enumerate(raced) if found.images == 320]
    assert finished
    assert [raced[i].loss for i in finished] == pytest.approx([full[i].loss for i in finished], rel=1e-5)
