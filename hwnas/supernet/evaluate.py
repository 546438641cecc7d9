"""Scoring networks: loss and accuracy on a split, and the batch-norm statistics that a path needs before it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from hwnas.data import Split
from hwnas.lower.torch import BN_MOMENTUM, ArchModule

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, share of right answers, and unweighted means over the classes of F1 score, precision and recall."""

    loss: float
    accuracy: float
    macro_f1: float
    precision: float
    recall: float


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Images, in the layout that convolutions run fastest in, and labels."""
    images = torch.from_numpy(split.images)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(split.labels)


def evaluate(network: ArchModule, split: Split) -> Evaluation:
    """The network on a split, in evaluation mode."""
    network.eval()
    images, labels = tensors(split)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(labels), EVALUATION_BATCH):
            logits.append(network(images[start : start + EVALUATION_BATCH]))
    scores = torch.cat(logits)
    predicted = scores.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels.numpy(), predicted.numpy(), average="macro", zero_division=0.0
    )
    return Evaluation(
        loss=float(F.cross_entropy(scores, labels)),
        accuracy=float((predicted == labels).double().mean()),
        macro_f1=float(f1),
        precision=float(precision),
        recall=float(recall),
    )


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
