"""Differentiable search: weights and alpha, the logits of the gates, are trained together, for any space that can be mixed.

Each step first moves alpha down the validation loss, then the weights down the training loss (Liu et al. 2019, algorithm 1).
How logits become gates, and what else happens, is a file in `supernet/gradients`. With a latency table the loss of alpha also
holds the expected latency, so that the search sees the device. On a GPU both halves are captured once as CUDA graphs and
replayed where the strategy allows it, since a step is thousands of launches otherwise.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from hwnas.data import Augmentation, SearchData
from hwnas.errors import UserError
from hwnas.space import Genotype
from hwnas.supernet.checkpoint import load_search, save_search
from hwnas.supernet.evaluate import tensors
from hwnas.supernet.expected_latency import ExpectedLatency
from hwnas.supernet.gradient import Alphas, Gradient
from hwnas.supernet.gradients.darts import Gradient as Darts
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import augment

Progress = Callable[[int, int, list[float], Alphas], None]  # epochs done, of how many, the last one's training losses


@dataclass(frozen=True)
class GradientRecipe:
    """The settings of DARTS for CIFAR-10. `steps`: at most so many an epoch.

    `latency_weight`: what the expected latency, as a share of the latency under equal gates, adds to the loss of alpha.
    """

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
    latency_weight: float = 0.0


class CollapseWarning(UserWarning):
    """The derived network is becoming one of skip connections."""


def search_differentiable(
    supernet: Supernet,
    data: SearchData,
    augmentation: Augmentation,
    recipe: GradientRecipe,
    *,
    seed: int,
    gradient: Gradient | None = None,
    latency: ExpectedLatency | None = None,
    alphas: Alphas | None = None,
    device: str = "cpu",
    graphs: bool = True,
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, losses, alphas: None,
) -> Alphas:
    """Trains weights and alphas together; `gradient` (first-order DARTS by default) derives the genotype from them.

    latency: with `latency_weight`, its expectation joins the loss of alpha. alphas: to start from, for a later stage.
    graphs: on a GPU, replay captured steps; without, launch every step anew. checkpoint: a file to continue from and to save to
    after every epoch. Warns with CollapseWarning once, when skip connections take over.
    """
    space = supernet.space
    gradient = gradient or Darts(space)
    if recipe.latency_weight and latency is None:
        raise UserError("a weight of the latency needs a latency table", got=recipe.latency_weight)
    supernet.to(device).train()
    alphas = (alphas or Alphas(space, seed)).to(device)
    weights = [p for p in supernet.parameters() if p.numel()]
    weight_optimizer = SGD(weights, lr=recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
    alpha_optimizer = Adam(
        alphas.parameters(), lr=recipe.alpha_learning_rate, betas=(0.5, 0.999), weight_decay=recipe.alpha_weight_decay
    )
    state = {"supernet": supernet, "alphas": alphas}, {"weights": weight_optimizer, "alphas": alpha_optimizer}
    start = load_search(checkpoint, *state) if checkpoint and checkpoint.exists() else 0
    train, validation = ([t.to(device) for t in tensors(split)] for split in (data.train, data.validation))
    batch = min(recipe.batch_size, len(train[1]), len(validation[1]))
    count = len(train[1]) // batch
    count = min(count, recipe.steps) if recipe.steps else count
    draws = random.Random()

    def loss_of(images: Tensor, labels: Tensor, gates: Sequence[object]) -> Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe.bfloat16):
            return F.cross_entropy(supernet(images, gates), labels)

    def train_loss(images: Tensor, labels: Tensor) -> Tensor:
        return loss_of(images, labels, gradient.weight_gates(alphas, draws))

    def alpha_loss(images: Tensor, labels: Tensor) -> Tensor:
        loss = loss_of(images, labels, gradient.alpha_gates(alphas, draws))
        if recipe.latency_weight and latency is not None:
            loss = loss + recipe.latency_weight * latency.share(alphas.probabilities())
        return loss

    logits = list(alphas.parameters())
    captured = graphs and gradient.static and device.startswith("cuda")
    alpha_half = _HalfStep(alpha_loss, logits, train[0][:batch], train[1][:batch], captured)
    weight_half = _HalfStep(train_loss, weights, train[0][:batch], train[1][:batch], captured)
    warned = False
    for epoch in range(start, recipe.epochs):
        draws.seed(f"{seed} {epoch} gates")
        rng = torch.Generator().manual_seed(random.Random(f"{seed} {epoch}").getrandbits(63))
        orders = [torch.randperm(len(split[1]), generator=rng) for split in (train, validation)]
        orders[1] = orders[1].repeat(math.ceil(count * batch / len(orders[1])))  # a smaller validation split comes round again
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        span = recipe.learning_rate - recipe.least_learning_rate
        rate = weight_optimizer.param_groups[0]["lr"] = recipe.least_learning_rate + cosine * span
        gradient.epoch(epoch / recipe.epochs)
        losses = []
        for step in range(count):
            index = [order[step * batch : (step + 1) * batch].to(device) for order in orders]
            seen = augment(validation[0][index[1]], augmentation, rng), validation[1][index[1]]
            fresh = augment(train[0][index[0]], augmentation, rng), train[1][index[0]]
            if gradient.second_order:
                _second_order(alpha_half, weight_half, seen, fresh, weight_optimizer, rate)
            else:
                alpha_half(*seen)
            before = alphas.copy()
            alpha_optimizer.step()
            gradient.after_alpha(alphas, before)
            losses.append(weight_half(*fresh).clone())
            torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
            weight_optimizer.step()
        if checkpoint:
            save_search(checkpoint, *state, epoch + 1)
        if not warned and gradient.collapsed(alphas):
            warned = True
            warnings.warn(
                f"skip connections take over after epoch {epoch + 1} of {recipe.epochs}: {gradient.skips(alphas)} of the edges"
                " that are kept; stop earlier, or search with pdarts, gdas or proxyless",
                CollapseWarning, stacklevel=2,
            )  # fmt: skip
        progress(epoch + 1, recipe.epochs, torch.stack(losses).tolist(), alphas)
    return alphas


def search_in_stages(
    make: Callable[[int], Supernet],
    data: SearchData,
    augmentation: Augmentation,
    recipe: GradientRecipe,
    gradient: Gradient,
    *,
    seed: int,
    latency: ExpectedLatency | None = None,
    device: str = "cpu",
    graphs: bool = True,
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, losses, alphas: None,
) -> Genotype:
    """All stages of a strategy, each on a supernet of its own, `make(stage)`; returns the derived genotype.

    The supernets may differ in depth, not in their choices. checkpoint: a folder, one file a stage.
    """
    alphas: Alphas | None = None
    choices = None
    for stage in range(gradient.stages):
        supernet = make(stage)
        if choices not in (None, supernet.space.choices):
            raise UserError("the supernets of all stages need the same choices", got=f"others in stage {stage + 1}")
        choices = supernet.space.choices
        gradient.stage(stage)
        started = Alphas(supernet.space, seed, gradient.open(alphas, stage))
        alphas = search_differentiable(
            supernet, data, augmentation, recipe, seed=seed + stage, gradient=gradient, latency=latency, alphas=started,
            device=device, graphs=graphs, progress=progress,
            checkpoint=checkpoint / f"stage{stage}.safetensors" if checkpoint else None,
        )  # fmt: skip
    assert alphas is not None
    return gradient.derive(alphas)


Batch = tuple[Tensor, Tensor]


def _second_order(
    alpha_half: _HalfStep, weight_half: _HalfStep, seen: Batch, fresh: Batch, optimizer: SGD, rate: float
) -> None:
    """Into alpha's grad, that of the validation loss after one step of the weights (Liu et al. 2019, equations 7 and 8).

    The step is the optimizer's own, momentum and decay included. The product with the Hessian is a difference of two gradients
    of the training loss, at weights a little to both sides.
    """
    weights, logits = weight_half.parameters, alpha_half.parameters
    group = optimizer.param_groups[0]
    with torch.no_grad():
        kept = [w.clone() for w in weights]
        weight_half(*fresh)
        for w in weights:
            momentum = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
            push = _grad(w) + group["weight_decay"] * w
            w.sub_(rate * (push if momentum is None else push + group["momentum"] * momentum))
    alpha_half(*seen)
    outer = [_grad(a).clone() for a in logits]
    towards = alpha_half.gradients_of(alpha_half.loss_of, seen, weights)
    norm = torch.stack([g.square().sum() for g in towards]).sum().sqrt()
    epsilon = 0.01 / norm.clamp_min(1e-12)
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for w, start, g in zip(weights, kept, towards, strict=True):
                w.copy_(start + sign * epsilon * g)
        sides.append(alpha_half.gradients_of(weight_half.loss_of, fresh, logits))
    with torch.no_grad():
        for w, start in zip(weights, kept, strict=True):
            w.copy_(start)
        for a, direct, plus, minus in zip(logits, outer, *sides, strict=True):
            _grad(a).copy_(direct - rate * (plus - minus) / (2 * epsilon))


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


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

    def gradients_of(
        self, loss_of: Callable[[Tensor, Tensor], Tensor], batch: Batch, parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        with torch.enable_grad():
            loss = loss_of(*batch)
            found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    def _run(self) -> None:
        with torch.enable_grad():
            loss = self.loss_of(self.images, self.labels)
            # A path that was not drawn has no gradient.
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                _grad(parameter).zero_()
            else:
                _grad(parameter).copy_(gradient)
        self.loss.copy_(loss.detach())
