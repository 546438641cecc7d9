"""Scores against numpy, and the statistics of batch norm against means written out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hwnas.data import Split
from hwnas.ir.arch import Arch, Node
from hwnas.ir.simplify import simplify
from hwnas.ir.tensor import TensorSpec
from hwnas.lower.torch import BN_MOMENTUM, to_torch
from hwnas.ops.classifier import Classifier
from hwnas.ops.conv_bn import ConvBn
from hwnas.supernet import evaluate as module
from hwnas.supernet.evaluate import evaluate, recalibrate


def f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean over the classes that occur in either, from the definition."""
    scores = []
    for c in sorted(set(labels) | set(predicted)):
        hit = np.sum((labels == c) & (predicted == c))
        wrong = np.sum((labels == c) != (predicted == c))
        scores.append(2 * hit / (2 * hit + wrong))
    return float(np.mean(scores))


@pytest.mark.parametrize("count", [1, 7, 45])
def test_scores_are_those_of_numpy(small_space, make_split, monkeypatch, count):
    monkeypatch.setattr(module, "EVALUATION_BATCH", 8)  # several batches, the last one smaller
    split = make_split(count, 3)
    for seed in range(4):
        network = to_torch(simplify(small_space.decode(small_space.sample(random.Random(seed)))), seed=seed).train()
        with torch.no_grad():  # before evaluation nothing has seen the images: a reference in double precision
            logits = to_torch(network.arch, network.weights()).double().eval()(torch.from_numpy(split.images).double()).numpy()
        found = evaluate(network, split)
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        predicted = logits.argmax(1)
        assert found.accuracy == np.mean(predicted == split.labels)
        assert found.loss == pytest.approx(-log_p[np.arange(count), split.labels].mean(), rel=1e-5)
        assert found.macro_f1 == pytest.approx(f1(split.labels, predicted), rel=1e-12)


def test_evaluation_changes_nothing(small_space, make_split):
    network = to_torch(simplify(small_space.decode(small_space.sample(random.Random(0)))))
    before = network.weights()
    assert evaluate(network, make_split(9)) == evaluate(network, make_split(9))
    assert all(np.array_equal(before[n], v) for n, v in network.weights().items())


ONE = Arch(
    TensorSpec((2, 8, 8)),
    (Node("a", ConvBn(3, 1), ("x",)), Node("b", ConvBn(2, 3), ("a",)), Node("head", Classifier(3), ("b",))),
    "head",
)


def batch_means(split: Split, size: int, batches: int, seed: int):
    """Of node a, by hand: a 1x1 convolution is a matrix; batch norm keeps the unbiased variance."""
    network = to_torch(ONE, seed=1)
    weight = network.weights()["a.conv.weight"][:, :, 0, 0].astype(np.float64)
    order = np.random.default_rng(seed).permutation(len(split))
    means, variances = [], []
    for i in range(batches):
        x = split.images[order[i * size : (i + 1) * size]].astype(np.float64)
        y = np.einsum("oc,nchw->onhw", weight, x).reshape(3, -1)
        means.append(y.mean(1))
        variances.append(y.var(1, ddof=1))
    return np.mean(means, 0), np.mean(variances, 0)


@pytest.mark.parametrize(("size", "asked", "used"), [(10, 4, 4), (10, 9, 6), (30, 2, 2), (64, 3, 1), (100, 4, 1)])
def test_recalibration_is_the_mean_over_the_batches(make_split, size, asked, used):
    split = make_split(64)
    network = to_torch(ONE, seed=1)
    names = [n for n in network.weights() if n.startswith("a.") and n.endswith(("running_mean", "running_var"))]
    with torch.no_grad():
        for name in names:
            network.get_buffer(name).fill_(123.0)  # nothing of what was there may remain
    recalibrate(network, split, batch_size=size, batches=asked, seed=5)
    mean, variance = batch_means(split, size, used, 5)
    found = network.weights()
    assert found[next(n for n in names if n.endswith("mean"))] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert found[next(n for n in names if n.endswith("var"))] == pytest.approx(variance, rel=1e-5)


def test_recalibration_touches_statistics_alone_and_restores_the_momentum(make_split):
    network = to_torch(ONE, seed=1)
    before = network.weights()
    recalibrate(network, make_split(40), batch_size=10, seed=0)
    assert network.bn_momentum == BN_MOMENTUM
    assert not network.training
    changed = {n for n, v in network.weights().items() if not np.array_equal(v, before[n])}
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var"))}
    assert all(p.grad is None for p in network.parameters())


def test_recalibration_is_decided_by_its_seed(make_split):
    found = []
    for seed in (0, 0, 1):
        network = to_torch(ONE, seed=1)
        recalibrate(network, make_split(64), batch_size=10, seed=seed)
        found.append(network.weights())
    assert all(np.array_equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not np.array_equal(found[0][n], found[2][n]) for n in found[0])
