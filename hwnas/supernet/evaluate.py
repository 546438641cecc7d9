"""Scoring networks: loss and accuracy on a split, and the batch-norm statistics that a path needs before it is scored.

`evaluate` scores one network; `evaluate_many` scores candidates of a supernet, merged into one program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data import SearchData, Split
from hwnas.ir.arch import Arch
from hwnas.lower.torch import BN_MOMENTUM, ArchModule
from hwnas.supernet.execute import Execution, in_parts
from hwnas.supernet.executions import loader
from hwnas.supernet.merge import merge
from hwnas.supernet.race import Race, Right, shuffled
from hwnas.supernet.supernet import Supernet

EVALUATION_BATCH = 512
MEMORY_LIMIT = (1 << 30, 8 << 30)  # bytes of activations: on processors, on GPUs
SIDE_BY_SIDE = 64  # candidates on a GPU at most


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, share of right answers, and unweighted means over the classes of F1 score, precision and recall.

    images: how many they are taken over. Of a candidate that a race stopped, accuracy and loss are those of the best that
    finished, moved by how far it was from that one on the images that both have seen; so it never ranks above it.
    """

    loss: float
    accuracy: float
    macro_f1: float
    precision: float
    recall: float
    images: int


def tensors(split: Split, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images, in the layout that convolutions run fastest in, and labels."""
    images = torch.from_numpy(split.images).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(split.labels).to(device)


class Tally:
    """Of several networks, image by image: whether they are right, and their loss; and their answers counted."""

    def __init__(self, networks: int) -> None:
        self.right = [np.zeros(0, bool)] * networks
        self.loss = [np.zeros(0)] * networks
        self.confusion: list[NDArray[np.int64]] = [np.zeros((1, 1), np.int64)] * networks  # [label, answer]

    def add(self, networks: Sequence[int], logits: Tensor, labels: Tensor) -> None:
        """Logits [networks, n, classes] of some of the networks, and labels [n]."""
        count, n, classes = logits.shape
        answers = logits.argmax(2)
        cells = (torch.arange(count, device=labels.device)[:, None] * classes + labels) * classes + answers
        counted = torch.bincount(cells.flatten(), minlength=count * classes**2).view(count, classes, classes).cpu().numpy()
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(count), reduction="none").view(count, n).double()
        for network, right, loss, cells_of in zip(
            networks, (answers == labels).cpu().numpy(), losses.cpu().numpy(), counted, strict=True
        ):
            self.right[network] = np.concatenate([self.right[network], right])
            self.loss[network] = np.concatenate([self.loss[network], loss])
            self.confusion[network] = self.confusion[network] + cells_of

    def evaluations(self) -> list[Evaluation]:
        images = max(map(len, self.right))
        finished = [i for i, right in enumerate(self.right) if len(right) == images]
        best = max(finished, key=lambda i: (self.right[i].sum(), -self.loss[i].sum()))
        return [self._evaluation(network, best) for network in range(len(self.right))]

    def _evaluation(self, network: int, best: int) -> Evaluation:
        confusion, images = self.confusion[network], len(self.right[network])
        hits, labelled, chosen = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        occurs = labelled + chosen > 0  # in labels or answers

        def mean(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
            """Over the classes that occur, 0 where there is nothing to be a share of."""
            return float(np.mean((part / np.maximum(whole, 1))[occurs]))

        def moved(values: Sequence[NDArray[Any]]) -> float:
            """The mean; of a network that has not seen all, as the best one's whole mean would have it."""
            own, whole = values[network].mean(), values[best]
            return float(own if len(whole) == images else whole.mean() + own - whole[:images].mean())

        # Whoever was stopped is behind somebody: an estimate by comparison with the best must not put it before that one.
        most = 1.0 if images == len(self.right[best]) else float(self.right[best].mean()) - 1 / len(self.right[best])
        return Evaluation(
            loss=moved(self.loss),
            accuracy=max(0.0, min(most, moved(self.right))),
            macro_f1=mean(2 * hits, labelled + chosen),
            precision=mean(hits, chosen),
            recall=mean(hits, labelled),
            images=images,
        )


def evaluate(network: ArchModule, split: Split) -> Evaluation:
    """The network on a split, in evaluation mode."""
    network.eval()
    images, labels = tensors(split)
    tally = Tally(1)
    with torch.inference_mode():
        for start in range(0, len(labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            tally.add([0], network(images[part])[None], labels[part])
    return tally.evaluations()[0]


def evaluate_many(
    supernet: Supernet,
    archs: Sequence[Arch],
    data: SearchData,
    *,
    batch_size: int = 128,
    batches: int = 4,
    seed: int = 0,
    memory_limit: int | None = None,
    race: Race | None = None,
) -> list[Evaluation]:
    """Of each arch, what `recalibrate` on the training split and `evaluate` on the validation split say of its derived network.

    archs: simplified ones of the supernet's space. They run as one merged program on the supernet's device, in parts whose live
    activations keep within `memory_limit` bytes (see MEMORY_LIMIT); UserError if that is too little for one of them. race:
    stops candidates that a better one has left behind, whose evaluation is then of the images that they have seen.
    """
    if not archs:
        return []
    device = next(supernet.parameters()).device
    limit = MEMORY_LIMIT[device.type == "cuda"] if memory_limit is None else memory_limit
    program = merge(archs)
    load = loader(program, lambda weight: supernet.view(weight.bank, weight.shape).detach(), device)
    chosen = (index.numpy() for index in _batches(len(data.train), batch_size, batches, seed))
    calibration = [tensors(Split(data.train.images[i], data.train.labels[i]), device)[0] for i in chosen]
    validation = data.validation
    if race:
        order = shuffled(len(validation), seed)
        validation = Split(validation.images[order], validation.labels[order])
    images, labels = tensors(validation, device)
    tally = Tally(len(archs))
    incumbent: Right | None = None
    running: list[tuple[Sequence[int], Tensor, Tensor]] = []  # what a device may still be working on
    with torch.inference_mode():
        # A GPU works on one part while the next is prepared, so there are several.
        at_most = SIDE_BY_SIDE if device.type == "cuda" else None
        for candidates, part in in_parts(program, load, limit, len(calibration[0]), at_most):
            part.recalibrate(calibration, limit)
            for seen in running:
                tally.add(*seen)
            if race:

                def answer(
                    which: NDArray[np.int64],
                    start: int,
                    end: int,
                    part: Execution = part,
                    candidates: Sequence[int] = candidates,
                ) -> Right:
                    names = [candidates[i] for i in which.tolist()]
                    tally.add(names, part.logits(images[start:end], limit, which.tolist()), labels[start:end])
                    return np.stack([tally.right[name][start:end] for name in names])

                _, incumbent = race.run(answer, len(candidates), len(labels), len(archs), incumbent)
            else:
                running = [(candidates, part.logits(images, limit), labels)]
        for seen in running:
            tally.add(*seen)
    return tally.evaluations()


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
