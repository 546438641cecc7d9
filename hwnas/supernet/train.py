"""Training: the supernet on sampled paths, and a network on its own.

SGD with Nesterov momentum, a short warm-up and a cosine schedule, label smoothing, and the augmentation that suits the data.
Everything random is drawn from (seed, epoch), so training that resumes from a checkpoint continues as if never stopped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from hwnas.data import Augmentation, SearchData
from hwnas.lower.torch import ArchModule
from hwnas.space import Genotype
from hwnas.supernet.checkpoint import load_checkpoint, save_checkpoint
from hwnas.supernet.evaluate import evaluate, tensors
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation

Progress = Callable[[int, int, float], None]  # epochs done, of how many, the last epoch's mean loss


@dataclass(frozen=True)
class Recipe:
    """How to train. `patience`: epochs without a better validation loss before training stops early."""

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    warm_up: float = 0.05
    patience: int = 20


@dataclass(frozen=True)
class Sampler:
    """Which paths a step of the supernet trains: `paths` random ones; `sandwich` adds the smallest and the largest.

    Uniform: Guo et al. 2020. Sandwich: Yu and Huang 2019.
    """

    rule: Literal["uniform", "sandwich"]
    smallest: Genotype
    largest: Genotype
    paths: int = 2

    def sample(self, supernet: Supernet, rng: random.Random) -> list[Genotype]:
        found = [supernet.space.sample(rng) for _ in range(self.paths)]
        return [self.largest, self.smallest, *found] if self.rule == "sandwich" else found


def augment(images: Tensor, augmentation: Augmentation, rng: torch.Generator) -> Tensor:
    """Shifts each image by up to `shift` pixels, zeros moving in, and mirrors every second one if `flip`."""
    if images.dim() != 4:
        return images
    n, _, height, width = images.shape
    if augmentation.shift:
        reach = augmentation.shift
        padded = F.pad(images, (reach, reach, reach, reach))
        top, left = torch.randint(0, 2 * reach + 1, (2, n), generator=rng)
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        # Indexed dims first, so the result is [n, height, width, channels].
        images = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if augmentation.flip:
        mirrored = (torch.rand(n, generator=rng) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images.contiguous(memory_format=torch.channels_last)  # a fifth faster than the default on processors


def train_supernet(
    supernet: Supernet,
    data: SearchData,
    augmentation: Augmentation,
    recipe: Recipe,
    sampler: Sampler,
    *,
    seed: int,
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, loss: None,
) -> None:
    """Trains the shared weights. With a checkpoint file, continues from it and saves to it after every epoch."""

    def step(images: Tensor, labels: Tensor, rng: random.Random) -> float:
        total = 0.0
        paths = sampler.sample(supernet, rng)
        for genotype in paths:
            loss = F.cross_entropy(supernet(images, genotype), labels, label_smoothing=recipe.label_smoothing) / len(paths)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    supernet.train()
    optimizer = _optimizer(supernet, recipe)
    start = load_checkpoint(checkpoint, supernet, optimizer) if checkpoint and checkpoint.exists() else 0
    for epoch in range(start, recipe.epochs):
        loss = _epoch(supernet, optimizer, data, augmentation, recipe, seed, epoch, step)
        if checkpoint:
            save_checkpoint(checkpoint, supernet, optimizer, epoch + 1)
        progress(epoch + 1, recipe.epochs, loss)


@dataclass(frozen=True)
class Trained:
    """`validation` is of the best epoch, whose weights the network holds."""

    epochs: int
    best_epoch: int
    validation: Evaluation


def train_network(
    network: ArchModule,
    data: SearchData,
    augmentation: Augmentation,
    recipe: Recipe,
    *,
    seed: int,
    progress: Progress = lambda done, total, loss: None,
) -> Trained:
    """Trains a network, stops early, and leaves it with the weights of the lowest validation loss."""

    def step(images: Tensor, labels: Tensor, rng: random.Random) -> float:
        loss = F.cross_entropy(network(images), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer = _optimizer(network, recipe)
    best, best_state, best_epoch, epoch = None, {}, 0, 0
    for epoch in range(recipe.epochs):
        network.train()
        loss = _epoch(network, optimizer, data, augmentation, recipe, seed, epoch, step)
        found = evaluate(network, data.validation)
        if best is None or found.loss < best.loss:
            best, best_epoch = found, epoch
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
        progress(epoch + 1, recipe.epochs, loss)
        if epoch - best_epoch >= recipe.patience:
            break
    if best is None:
        return Trained(0, 0, evaluate(network, data.validation))
    network.load_state_dict(best_state)
    return Trained(epoch + 1, best_epoch + 1, best)


def _optimizer(module: nn.Module, recipe: Recipe) -> SGD:
    """Weight decay is for matrices and kernels; scales, shifts and biases go without (He et al. 2019, Bag of Tricks)."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def _epoch(
    module: nn.Module,
    optimizer: SGD,
    data: SearchData,
    augmentation: Augmentation,
    recipe: Recipe,
    seed: int,
    epoch: int,
    step: Callable[[Tensor, Tensor, random.Random], float],
) -> float:
    """One pass over the training split; returns the mean loss."""
    paths = random.Random(f"{seed} {epoch}")
    draws = torch.Generator().manual_seed(paths.getrandbits(63))
    images, labels = tensors(data.train)
    batches = list(_shuffled(len(labels), recipe.batch_size, draws))
    total = 0.0
    for i, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule((epoch + i / len(batches)) / recipe.epochs, recipe.warm_up)
        optimizer.zero_grad()
        total += step(augment(images[index], augmentation, draws), labels[index], paths)
        optimizer.step()
    return total / len(batches)


def _shuffled(count: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Batches of a permutation; a last batch under two samples is dropped, since batch norm has no variance of one."""
    for index in torch.randperm(count, generator=rng).split(size):  # type: ignore[no-untyped-call]
        if len(index) > 1:
            yield index


def _schedule(share: float, warm_up: float) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter 2017)."""
    if share < warm_up:
        return (share + 1e-3) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
