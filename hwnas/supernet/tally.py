"""tally: what networks answer, image by image, and what that says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


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


class Seen(NamedTuple):
    """Of some networks, image by image, whether they are right, and their loss; and their answers counted.

    [networks, n] twice, and [networks, label, answer].
    """

    right: Tensor
    loss: Tensor
    counted: Tensor

    def fetched(self) -> Seen:
        """On the processor, once the GPU where it was is synchronized."""
        return Seen(*(values.to("cpu", non_blocking=True) for values in self))


def look(logits: Tensor, labels: Tensor) -> Seen:
    """At logits [networks, n, classes] for labels [n], where they lie; a GPU is not waited for."""
    count, n, classes = logits.shape
    answers = logits.argmax(2)
    cells = (torch.arange(count, device=labels.device)[:, None] * classes + labels) * classes + answers
    counted = torch.zeros(count * classes**2, dtype=torch.long, device=labels.device)
    counted.index_add_(0, cells.flatten(), torch.ones_like(cells).flatten())
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(count), reduction="none").view(count, n).double()
    return Seen(answers == labels, losses, counted.view(count, classes, classes))


class Tally:
    """Of several networks, image by image: whether they are right, and their loss; and their answers counted."""

    def __init__(self, networks: int) -> None:
        self.right = [np.zeros(0, bool)] * networks
        self.loss = [np.zeros(0)] * networks
        self.confusion: list[NDArray[np.int64]] = [np.zeros((1, 1), np.int64)] * networks  # [label, answer]

    def add(self, networks: Sequence[int], seen: Seen) -> None:
        for network, right, loss, cells_of in zip(networks, *(values.cpu().numpy() for values in seen), strict=True):
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
