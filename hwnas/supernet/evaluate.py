"""Scoring networks: loss and accuracy on a split, and the batch-norm statistics that a path needs before it is scored.

`evaluate` scores one network; `evaluate_many` scores candidates of a supernet, merged into one program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hwnas.data import SearchData, Split
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import BN_MOMENTUM, ArchModule
from hwnas.space import Genotype
from hwnas.supernet.execute import in_parts, loader
from hwnas.supernet.merge import merge
from hwnas.supernet.supernet import Supernet

EVALUATION_BATCH = 512
MEMORY_LIMIT = 1 << 30  # bytes of activations


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, share of right answers, and unweighted means over the classes of F1 score, precision and recall."""

    loss: float
    accuracy: float
    macro_f1: float
    precision: float
    recall: float


def tensors(split: Split, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images, in the layout that convolutions run fastest in, and labels."""
    images = torch.from_numpy(split.images).to(device)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(split.labels).to(device)


class Tally:
    """Counts of a network's answers and its summed loss, batch by batch."""

    def __init__(self) -> None:
        self.confusion: NDArray[np.int64] | int = 0  # [label, answer]
        self.loss = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits [n, classes] and labels [n] of some images."""
        classes = logits.shape[1]
        cells = labels * classes + logits.argmax(1)
        self.confusion = self.confusion + torch.bincount(cells, minlength=classes**2).view(classes, classes).cpu().numpy()
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def evaluation(self) -> Evaluation:
        assert isinstance(self.confusion, np.ndarray)
        hits, right, chosen = np.diag(self.confusion), self.confusion.sum(1), self.confusion.sum(0)
        occurs = right + chosen > 0  # in labels or answers

        def mean(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
            """Over the classes that occur, 0 where there is nothing to be a share of."""
            return float(np.mean((part / np.maximum(whole, 1))[occurs]))

        return Evaluation(
            loss=self.loss / int(right.sum()),
            accuracy=float(hits.sum() / right.sum()),
            macro_f1=mean(2 * hits, right + chosen),
            precision=mean(hits, chosen),
            recall=mean(hits, right),
        )


def evaluate(network: ArchModule, split: Split) -> Evaluation:
    """The network on a split, in evaluation mode."""
    network.eval()
    images, labels = tensors(split)
    tally = Tally()
    with torch.inference_mode():
        for start in range(0, len(labels), EVALUATION_BATCH):
            tally.add(network(images[start : start + EVALUATION_BATCH]), labels[start : start + EVALUATION_BATCH])
    return tally.evaluation()


def evaluate_many(
    supernet: Supernet,
    genotypes: Sequence[Genotype],
    data: SearchData,
    *,
    batch_size: int = 128,
    batches: int = 4,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> list[Evaluation]:
    """Of each path, what `recalibrate` on the training split and `evaluate` on the validation split say of its derived network.

    The paths run as one merged program, in parts whose live activations keep within `memory_limit` bytes, on the supernet's
    device. UserError if that is too little for one of them.
    """
    if not genotypes:
        return []
    program = merge([simplify(supernet.space.decode(genotype)) for genotype in genotypes])
    load = loader(program, lambda weight: supernet.view(weight.bank, weight.shape))
    device = next(supernet.parameters()).device
    training, _ = tensors(data.train, device)
    images, labels = tensors(data.validation, device)
    calibration = [training[index] for index in _batches(len(training), batch_size, batches, seed)]
    found: dict[int, Evaluation] = {}
    with torch.inference_mode():
        for part in in_parts(program, load, memory_limit, len(calibration[0])):
            part.recalibrate(calibration, memory_limit)
            tallies = [Tally() for _ in part.candidates]
            for start in range(0, len(labels), EVALUATION_BATCH):
                logits = part.logits(images[start : start + EVALUATION_BATCH], memory_limit)
                for tally, own in zip(tallies, logits, strict=True):
                    tally.add(own, labels[start : start + EVALUATION_BATCH])
            found.update((candidate, tally.evaluation()) for candidate, tally in zip(part.candidates, tallies, strict=True))
    return [found[candidate] for candidate in range(len(genotypes))]


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
