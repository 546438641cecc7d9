"""Differentiable search: native and plain mixed ops follow one loss curve, and the steps are the paper's."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hwnas.data import Augmentation, SearchData, Split
from hwnas.spaces import make_space
from hwnas.supernet.differentiable import GradientRecipe, search_differentiable
from hwnas.supernet.gradient import Alphas
from hwnas.supernet.supernet import Supernet

PLAIN = Augmentation(flip=False, shift=0)


def images(seed: int, n: int = 24, side: int = 8) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.standard_normal((n, 3, side, side)).astype(np.float32), np.arange(n) % 3)


def test_native_and_plain_mixed_ops_give_one_loss_curve():
    space = make_space("darts(channels=4,cells=3,input=(3,8,8),classes=3)")
    data = SearchData(images(0), images(1))
    curves, genotypes = [], []
    for native in (True, False):
        told: list[float] = []
        alphas = search_differentiable(
            Supernet(space, seed=1, native=native), data, Augmentation(flip=True, shift=1),
            GradientRecipe(epochs=2, batch_size=8, alpha_learning_rate=0.1), seed=2,
            progress=lambda done, total, losses, alphas, told=told: told.extend(losses),
        )  # fmt: skip
        curves.append(told)
        genotypes.append(alphas.genotype(space))
    assert len(curves[0]) == 6
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3)
    assert curves[0][0] != curves[0][-1]
    assert genotypes[0] == genotypes[1]


def test_one_step_against_the_algorithm_by_hand():
    """Alpha moves first, on validation data; then the weights, on training data, under the new alphas."""
    space = make_space("chain(kind='dense',input=(5,),classes=3,layers=1,widths=(4,),activations=('relu','tanh'))")
    rng = np.random.default_rng(0)
    train, validation = (Split(rng.standard_normal((6, 5)).astype(np.float32), np.arange(6) % 3) for _ in range(2))
    recipe = GradientRecipe(epochs=1, batch_size=6, weight_decay=0.0, alpha_weight_decay=0.0, alpha_learning_rate=0.1)
    net = Supernet(space, seed=4)
    alphas = search_differentiable(net, SearchData(train, validation), PLAIN, recipe, seed=7)

    reference = Supernet(space, seed=4)
    expected = Alphas(space, 7)
    logits = list(expected.logits)
    x, y = torch.from_numpy(validation.images), torch.from_numpy(validation.labels)
    loss = F.cross_entropy(reference(x, expected.gates()), y)
    with torch.no_grad():
        for a, gradient in zip(logits, torch.autograd.grad(loss, logits, allow_unused=True), strict=True):
            if gradient is not None:  # Adam's first step has the size of the learning rate
                a -= 0.1 * gradient / (gradient.abs() + 1e-8)
    for a, b in zip(alphas.logits, logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    x, y = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    weights = list(reference.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(reference(x, expected.gates()), y), weights)
    for found, before, gradient in zip(net.parameters(), weights, gradients, strict=True):
        torch.testing.assert_close(found, before - recipe.learning_rate * gradient, rtol=1e-4, atol=1e-6)
