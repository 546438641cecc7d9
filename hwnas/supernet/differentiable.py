"""Differentiable search: first-order DARTS (Liu et al. 2019, algorithm 1 with xi = 0) for any space that can be mixed.

Each step first moves alpha, the logits of the gates, down the validation loss, then the weights down the training loss. On a
GPU both halves are captured once as CUDA graphs and replayed, since a step is thousands of launches otherwise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from hwnas.data import Augmentation, SearchData
from hwnas.space import Genotype, Space
from hwnas.supernet.evaluate import tensors
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import augment


@dataclass(frozen=True)
class GradientRecipe:
    """The paper's settings for CIFAR-10. `steps`: at most so many an epoch."""

    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 0.025
    least_learning_rate: float = 0.001
    weight_decay: float = 3e-4
    clip: float = 5.0
    alpha_learning_rate: float = 3e-4
    alpha_weight_decay: float = 1e-3
    steps: int | None = None
    bfloat16: bool = False


class Alphas(nn.Module):
    """One vector of logits per choice, small and random as in the paper."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.logits = nn.ParameterList(1e-3 * torch.randn(len(c.options), generator=rng) for c in space.choices)

    def gates(self) -> list[Tensor]:
        return [a.softmax(0) for a in self.logits]

    def genotype(self, space: Space) -> Genotype:
        """The derived architecture: the strongest options under the space's rules."""
        return space.from_scores([gate.tolist() for gate in self.gates()])


def search_differentiable(
    supernet: Supernet,
    data: SearchData,
    augmentation: Augmentation,
    recipe: GradientRecipe,
    *,
    seed: int,
    device: str = "cpu",
    graphs: bool = True,
    progress: Callable[[int, int, list[float], Alphas], None] = lambda done, total, losses, alphas: None,
) -> Alphas:
    """Trains weights and alphas together. `progress` is told the training losses of each epoch's steps.

    `graphs`: on a GPU, replay captured steps; without, launch every step anew.
    """
    supernet.to(device).train()
    alphas = Alphas(supernet.space, seed).to(device)
    weights = [p for p in supernet.parameters() if p.numel()]
    weight_optimizer = SGD(weights, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
    alpha_optimizer = Adam(
        alphas.parameters(), lr=recipe.alpha_learning_rate, betas=(0.5, 0.999), weight_decay=recipe.alpha_weight_decay
    )
    train, validation = ([t.to(device) for t in tensors(split)] for split in (data.train, data.validation))
    batch = min(recipe.batch_size, len(train[1]), len(validation[1]))
    count = len(train[1]) // batch
    count = min(count, recipe.steps) if recipe.steps else count

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe.bfloat16):
            return F.cross_entropy(supernet(images, alphas.gates()), labels)

    half_steps = [
        _HalfStep(loss_of, parameters, train[0][:batch], train[1][:batch], graphs and device.startswith("cuda"))
        for parameters in (list(alphas.parameters()), weights)
    ]
    for epoch in range(recipe.epochs):
        rng = torch.Generator().manual_seed(random.Random(f"{seed} {epoch}").getrandbits(63))
        orders = [torch.randperm(len(split[1]), generator=rng) for split in (train, validation)]
        orders[1] = orders[1].repeat(math.ceil(count * batch / len(orders[1])))  # a smaller validation split comes round again
        share = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        span = recipe.learning_rate - recipe.least_learning_rate
        weight_optimizer.param_groups[0]["lr"] = recipe.least_learning_rate + share * span
        losses = []
        for step in range(count):
            index = [order[step * batch : (step + 1) * batch].to(device) for order in orders]
            half_steps[0](augment(validation[0][index[1]], augmentation, rng), validation[1][index[1]])
            alpha_optimizer.step()
            losses.append(half_steps[1](augment(train[0][index[0]], augmentation, rng), train[1][index[0]]).clone())
            torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
            weight_optimizer.step()
        progress(epoch + 1, recipe.epochs, torch.stack(losses).tolist(), alphas)
    return alphas


class _HalfStep:
    """Loss of a batch and its gradient to some parameters, left in their `grad`; captured as a CUDA graph if `graphed`."""

    def __init__(
        self,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        parameters: list[nn.Parameter],
        images: Tensor,
        labels: Tensor,
        graphed: bool,
    ) -> None:
        self.loss_of, self.parameters = loss_of, parameters
        self.images, self.labels = images.clone(), labels.clone()
        self.loss = torch.zeros((), device=images.device)
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self.graph: torch.cuda.CUDAGraph | None = None
        if graphed:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm-up: lazy initialisation must not be captured
                for _ in range(2):
                    self._run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.images.copy_(images)
        self.labels.copy_(labels)
        if self.graph:
            self.graph.replay()
        else:
            self._run()
        return self.loss

    def _run(self) -> None:
        loss = self.loss_of(self.images, self.labels)
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        self.loss.copy_(loss.detach())
