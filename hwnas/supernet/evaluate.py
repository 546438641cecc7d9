"""Scoring networks: loss and accuracy on a split, and the batch-norm statistics that a path needs before it is scored.

`evaluate` scores one network; `evaluate_many` scores candidates of a supernet, merged into one program.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data import SearchData, Split
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import BN_MOMENTUM, ArchModule
from hwnas.space import Genotype
from hwnas.supernet.execute import Execution, in_parts
from hwnas.supernet.executions import executor
from hwnas.supernet.merge import merge
from hwnas.supernet.race import Answer, Race, Right, shuffled
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation, Seen, Tally, look

EVALUATION_BATCH = 512
MEMORY_LIMIT = (1 << 30, 8 << 30)  # bytes of activations: on processors, on GPUs
SIDE_BY_SIDE = 64  # candidates on a GPU at most


def tensors(split: Split, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images, in the layout that convolutions run fastest in, and labels."""
    images = torch.from_numpy(split.images).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(split.labels).to(device)


def evaluate(network: ArchModule, split: Split) -> Evaluation:
    """The network on a split, in evaluation mode."""
    network.eval()
    images, labels = tensors(split)
    tally = Tally(1)
    with torch.inference_mode():
        for start in range(0, len(labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            tally.add([0], look(network(images[part])[None], labels[part]))
    return tally.evaluations()[0]


def evaluate_many(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    data: SearchData,
    *,
    batch_size: int = 128,
    batches: int = 4,
    seed: int = 0,
    memory_limit: int | None = None,
    race: Race | None = None,
) -> list[Evaluation]:
    """Of each candidate, what `recalibrate` on the training and `evaluate` on the validation split say of its derived network.

    They run as one merged program of their simplified archs on the supernet's device, in parts whose live activations keep
    within `memory_limit` bytes (see MEMORY_LIMIT); UserError if that is too little for one of them. race: stops candidates that
    a better one has left behind, whose evaluation is then of the images that they have seen.
    """
    if not genotypes:
        return []
    device = next(supernet.parameters()).device
    limit = MEMORY_LIMIT[device.type == "cuda"] if memory_limit is None else memory_limit
    execution = executor(lambda weight: supernet.view(weight.bank, weight.shape).detach(), device)

    def load(candidates: Sequence[int]) -> Execution:
        return execution(merge([simplify(supernet.space.decode(genotypes[c])) for c in candidates]))

    in_order = sorted(range(len(genotypes)), key=genotypes.__getitem__)  # neighbours share what runs first
    chosen = (index.numpy() for index in _batches(len(data.train), batch_size, batches, seed))
    calibration = [tensors(Split(data.train.images[i], data.train.labels[i]), device)[0] for i in chosen]
    validation = data.validation
    if race:
        order = shuffled(len(validation), seed)
        validation = Split(validation.images[order], validation.labels[order])
    images, labels = tensors(validation, device)
    tally = Tally(len(genotypes))
    incumbent: Right | None = None
    running: list[tuple[Sequence[int], Seen]] = []  # what a GPU may still be working on, which nobody waits for before the end
    with torch.inference_mode(), _no_collection():
        # A GPU works on one part while the next is made of its genotypes, so there are several; a race waits for each answer.
        at_most = SIDE_BY_SIDE if device.type == "cuda" and not race else None
        for candidates, part in in_parts(in_order, load, limit, len(calibration[0]), at_most):
            part.recalibrate(calibration, limit)
            if race:
                # Nothing else may keep hold of the part, which has memory.
                _, incumbent = race.run(
                    _answer(part, limit, images, labels, candidates, tally),
                    len(candidates), len(labels), len(genotypes), incumbent,
                )  # fmt: skip
            else:
                running.append((candidates, look(part.logits(images, limit), labels).fetched()))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        for seen in running:
            tally.add(*seen)
    return tally.evaluations()


def _answer(part: Execution, limit: int, images: Tensor, labels: Tensor, candidates: Sequence[int], tally: Tally) -> Answer:
    """Who of a part is right about which images, which the tally learns too."""

    def answer(which: NDArray[np.int64], start: int, end: int) -> Right:
        names = [candidates[i] for i in which.tolist()]
        tally.add(names, look(part.logits(images[start:end], limit, which.tolist()), labels[start:end]))
        return np.stack([tally.right[name][start:end] for name in names])

    return answer


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of small objects are made and stay: looking for garbage among them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def recalibrate(network: ArchModule, split: Split, batch_size: int = 128, batches: int = 4, seed: int = 0) -> None:
    """Replaces the batch-norm statistics by their average over some training batches.

    Shared weights see a path's statistics only now and then, so what the supernet remembers is of another mixture (Guo et al.
    2020, Single Path One-Shot, section 3.4).
    """
    network.train()
    images, _ = tensors(split)
    with torch.no_grad():
        for i, index in enumerate(_batches(len(images), batch_size, batches, seed)):
            network.bn_momentum = 1 / (i + 1)  # a running mean with these weights is the plain mean
            network(images[index])
    network.bn_momentum = BN_MOMENTUM
    network.eval()


def _batches(count: int, size: int, batches: int, seed: int) -> Iterator[Tensor]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    for i in range(min(batches, max(1, count // size))):
        yield order[i * size : (i + 1) * size]
