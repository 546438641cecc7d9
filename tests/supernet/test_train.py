"""Training: the supernet on paths, checkpoints, and a network on its own, against plain PyTorch."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.data import Augmentation, SearchData, Split
from hwnas.errors import UserError
from hwnas.ir.simplify import simplify
from hwnas.lower.cost import cost
from hwnas.lower.torch import to_torch
from hwnas.search.admission import smallest
from hwnas.spaces import make_space
from hwnas.supernet import train as module
from hwnas.supernet.derive import derive
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.train import Recipe, Sampler, train_network, train_supernet

NONE = Augmentation(flip=False, shift=0)
BOTH = Augmentation(flip=True, shift=1)


def sampler(space, rule="uniform", paths=2):
    ends = [smallest(space, lambda g, s=s: s * cost(space.decode(g)).macs) for s in (1, -1)]
    return Sampler(rule, smallest=ends[0], largest=ends[1], paths=paths)


class Fixed(Sampler):
    def sample(self, supernet, rng):
        return [self.smallest]


def bags(network, recipe):
    """Plain SGD: decay on matrices and kernels alone."""
    matrices = [p for p in network.parameters() if p.dim() > 1]
    rest = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("seed", range(3))
def test_one_step_on_one_path_is_plain_sgd_on_the_derived_network(small_space, make_split, seed):
    """One batch of all images, whose order no mean depends on: nothing random is left. Float32, hence 1e-5 of each tensor."""
    data = SearchData(make_split(30), make_split(6, 1))
    genotype = small_space.sample(random.Random(seed))
    recipe = Recipe(epochs=1, batch_size=30, learning_rate=0.05, warm_up=0.0)
    supernet = Supernet(small_space, seed)
    network = to_torch(simplify(small_space.decode(genotype)), derive(supernet, genotype)).train()
    optimizer = bags(network, recipe)
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()

    told = []
    before = derive(supernet, genotype)
    train_supernet(
        supernet, data, NONE, recipe, Fixed("uniform", genotype, genotype), seed=seed, progress=lambda *a: told.append(a)
    )
    assert told[0][:2] == (1, 1)
    assert told[0][2] == pytest.approx(loss.item(), rel=1e-5)
    after, moved = derive(supernet, genotype), 0
    for name, expected in network.weights().items():
        assert np.abs(after[name] - expected).max() <= 1e-5 * max(0.1, np.abs(expected).max()), name
        moved += not np.array_equal(after[name], before[name])
    assert moved == len(after)  # also the running statistics


def test_a_step_on_several_paths_takes_the_mean_of_their_gradients(small_space, make_split):
    data = SearchData(make_split(30), make_split(6, 1))
    space, recipe = small_space, Recipe(epochs=1, batch_size=30, learning_rate=0.05, warm_up=0.0, weight_decay=0.0)
    rule = sampler(space, "sandwich", paths=0)

    reference = Supernet(space, 0).double().train()
    images, labels = torch.from_numpy(data.train.images).double(), torch.from_numpy(data.train.labels)
    losses = [F.cross_entropy(reference(images, g), labels, label_smoothing=0.1) for g in (rule.smallest, rule.largest)]
    (sum(losses) / 2).backward()
    trained = Supernet(space, 0)
    train_supernet(trained, data, NONE, recipe, rule, seed=0)
    for (name, p), q in zip(reference.named_parameters(), trained.parameters(), strict=True):
        step = torch.zeros_like(p) if p.grad is None else 0.05 * (1 + 0.9) * p.grad  # Nesterov: g + 0.9 g at the first step
        expected = p.detach() - step
        assert (q - expected).abs().max() <= 1e-5 * max(0.1, float(expected.abs().max())), name


class Spy:
    """Notes which paths a supernet runs."""

    def __init__(self, supernet):
        self.paths = []
        real = supernet.forward

        def forward(x, gates):
            self.paths.append(tuple(gates))
            return real(x, gates)

        supernet.forward = forward


@pytest.mark.parametrize(("rule", "count"), [("uniform", 2), ("sandwich", 4)])
def test_the_sandwich_trains_the_smallest_and_the_largest_at_every_step(small_space, small_data, rule, count):
    supernet = Supernet(small_space, 0)
    spy = Spy(supernet)
    paths = sampler(small_space, rule)
    train_supernet(supernet, small_data, BOTH, Recipe(epochs=2, batch_size=15), paths, seed=0)
    steps = [spy.paths[i : i + count] for i in range(0, len(spy.paths), count)]
    assert len(steps) == 2 * 3
    everything = [cost(small_space.decode(g)).macs for g in spy.paths]
    for step in steps:
        ends = {paths.smallest, paths.largest} <= set(step)
        assert ends or rule == "uniform"
    if rule == "sandwich":
        assert min(everything) == cost(small_space.decode(paths.smallest)).macs
        assert max(everything) == cost(small_space.decode(paths.largest)).macs
    assert len(set(spy.paths)) > 4  # and random ones


class Killed(BaseException):
    pass


@pytest.mark.parametrize("rule", ["uniform", "sandwich"])
def test_resumed_training_is_uninterrupted_training_bit_for_bit(small_space, small_data, tmp_path, rule, state_of):
    recipe = Recipe(epochs=4, batch_size=15)
    whole = Supernet(small_space, 0)
    train_supernet(whole, small_data, BOTH, recipe, sampler(small_space, rule), seed=5)
    expected = state_of(whole)
    for killed in (1, 3):
        path = tmp_path / f"{rule}{killed}.safetensors"

        def kill(done, total, loss, killed=killed):
            assert total == 4
            if done == killed:
                raise Killed

        with pytest.raises(Killed):
            train_supernet(
                Supernet(small_space, 0), small_data, BOTH, recipe, sampler(small_space, rule), seed=5, checkpoint=path,
                progress=kill,
            )  # fmt: skip
        torch.manual_seed(killed)  # what the new process draws elsewhere must not matter
        random.seed(killed)
        resumed, told = Supernet(small_space, 77), []
        train_supernet(
            resumed, small_data, BOTH, recipe, sampler(small_space, rule), seed=5, checkpoint=path,
            progress=lambda done, total, loss, told=told: told.append(done),
        )  # fmt: skip
        assert told == list(range(killed + 1, 5))
        assert all(torch.equal(value, expected[name]) for name, value in state_of(resumed).items())
        again = Supernet(small_space, 78)  # a finished checkpoint is loaded and left alone
        train_supernet(again, small_data, BOTH, recipe, sampler(small_space, rule), seed=5, checkpoint=path)
        assert all(torch.equal(value, expected[name]) for name, value in state_of(again).items())


def test_killed_within_an_epoch_it_resumes_from_the_last_whole_one(small_space, small_data, tmp_path, state_of, monkeypatch):
    recipe, path = Recipe(epochs=3, batch_size=15), tmp_path / "c.safetensors"
    whole = Supernet(small_space, 0)
    train_supernet(whole, small_data, BOTH, recipe, sampler(small_space), seed=5)
    steps = 0
    real = torch.optim.SGD.step

    def step(self, *args):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise Killed
        return real(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(Killed):
        train_supernet(Supernet(small_space, 0), small_data, BOTH, recipe, sampler(small_space), seed=5, checkpoint=path)
    monkeypatch.undo()
    resumed = Supernet(small_space, 0)
    train_supernet(resumed, small_data, BOTH, recipe, sampler(small_space), seed=5, checkpoint=path)
    assert all(torch.equal(v, state_of(whole)[n]) for n, v in state_of(resumed).items())


def test_training_is_decided_by_its_seed(small_space, small_data, state_of):
    states = []
    for seed in (1, 1, 2):
        supernet = Supernet(small_space, 0)
        train_supernet(supernet, small_data, BOTH, Recipe(epochs=1, batch_size=15), sampler(small_space), seed=seed)
        states.append(state_of(supernet))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


@pytest.mark.parametrize("other", ["mobilenet(input=(2,8,8), classes=3, stages=((8,2,2),), stem=8, first=8, head=24)", "chain"])
def test_a_checkpoint_of_another_network_is_refused(small_space, small_data, tmp_path, other):
    path = tmp_path / "c.safetensors"
    recipe = Recipe(epochs=1, batch_size=45)
    train_supernet(Supernet(small_space, 0), small_data, NONE, recipe, sampler(small_space), seed=0, checkpoint=path)
    before = path.read_bytes()
    foreign = make_space(other, classes=3)
    ends = foreign.sample(random.Random(0))
    with pytest.raises(UserError, match="not a checkpoint of this network") as caught:
        train_supernet(
            Supernet(foreign, 0), small_data, NONE, recipe, Sampler("uniform", ends, ends), seed=0, checkpoint=path
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b[:-7], lambda b: b"not safetensors" * 9])
def test_a_damaged_checkpoint_is_refused(small_space, small_data, tmp_path, damage):
    path = tmp_path / "c.safetensors"
    recipe = Recipe(epochs=1, batch_size=45)
    train_supernet(Supernet(small_space, 0), small_data, NONE, recipe, sampler(small_space), seed=0, checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="not a safetensors file") as caught:
        train_supernet(Supernet(small_space, 0), small_data, NONE, recipe, sampler(small_space), seed=0, checkpoint=path)
    assert "\n" not in str(caught.value)


def test_the_supernet_learns(small_space, make_split):
    """The data can be told apart by a linear map, so a path must do better than chance on images it has not seen."""
    data = SearchData(make_split(90), make_split(60, 1))
    supernet = Supernet(small_space, 0)
    train_supernet(supernet, data, NONE, Recipe(epochs=6, batch_size=15), sampler(small_space, "sandwich"), seed=0)
    genotype = sampler(small_space).largest
    network = to_torch(simplify(small_space.decode(genotype)), derive(supernet, genotype))
    assert evaluate(network, data.validation).accuracy > 1 / 3 + 5 * (2 / 9 / 60) ** 0.5


class TestTrainNetwork:
    def network(self, space, seed=0):
        return to_torch(simplify(space.decode(space.sample(random.Random(seed)))), seed=seed)

    def losses(self, monkeypatch, values):
        """Scripted validation losses; notes the weights that were scored."""
        seen = []
        real = module.evaluate

        def scripted(network, split):
            seen.append({n: v.clone() for n, v in network.state_dict().items()})
            return replace(real(network, split), loss=values[len(seen) - 1])

        monkeypatch.setattr(module, "evaluate", scripted)
        return seen

    @pytest.mark.parametrize(
        ("values", "patience", "epochs", "best"),
        [
            ([3, 2, 1, 1.5, 1.2, 1.1, 9, 9], 3, 6, 3),  # stops after three in vain
            ([1, 2, 3, 4, 5, 6, 7, 8], 1, 2, 1),
            ([8, 7, 6, 5, 4, 3, 2, 1], 2, 8, 8),
            ([2, 2, 2, 2, 2, 2, 2, 2], 4, 5, 1),  # as good is not better
            ([3, 4, 4, 2, 4, 4, 4, 1], 3, 7, 4),  # and the better one after it is not seen
        ],
    )
    def test_stops_early_with_the_best_weights(self, small_space, small_data, monkeypatch, values, patience, epochs, best):
        seen = self.losses(monkeypatch, values)
        network = self.network(small_space)
        recipe = Recipe(epochs=8, batch_size=45, patience=patience)
        found = train_network(network, small_data, NONE, recipe, seed=0)
        assert (found.epochs, found.best_epoch, found.validation.loss) == (epochs, best, values[best - 1])
        assert len(seen) == epochs
        for name, value in network.state_dict().items():
            assert torch.equal(value, seen[best - 1][name])
        if best < epochs:
            assert any(not torch.equal(v, seen[-1][n]) for n, v in network.state_dict().items())

    def test_says_what_the_kept_weights_score(self, small_space, small_data):
        network = self.network(small_space)
        found = train_network(network, small_data, BOTH, Recipe(epochs=3, batch_size=15), seed=0)
        assert evaluate(network, small_data.validation) == found.validation

    def test_is_plain_sgd(self, small_space, make_split):
        """Three epochs of one batch each, against a loop written out here; 1e-4, since three steps amplify rounding."""
        data = SearchData(make_split(30), make_split(12, 1))
        recipe = Recipe(epochs=3, batch_size=30, learning_rate=0.02, warm_up=0.4, patience=99)
        network, reference = self.network(small_space), self.network(small_space).double().train()
        optimizer = bags(reference, recipe)
        images, labels = torch.from_numpy(data.train.images).double(), torch.from_numpy(data.train.labels)
        states = []
        for epoch in range(3):
            share = epoch / 3
            warm = (share + 1e-3) / 0.4
            for group in optimizer.param_groups:
                cosine = 0.5 * (1 + math.cos(math.pi * (share - 0.4) / 0.6))
                group["lr"] = 0.02 * (warm if share < 0.4 else cosine)
            optimizer.zero_grad()
            smooth = torch.full((30, 3), 0.1 / 3, dtype=torch.float64)
            smooth[torch.arange(30), labels] += 0.9
            loss = -(smooth * reference(images).log_softmax(1)).sum(1).mean()
            loss.backward()
            optimizer.step()
            states.append({n: v.clone() for n, v in reference.state_dict().items()})
        found = train_network(network, data, NONE, recipe, seed=0)
        for name, value in network.state_dict().items():
            expected = states[found.best_epoch - 1][name]
            assert (value - expected).abs().max() <= 1e-4 * max(0.1, float(expected.abs().max())), name

    def test_no_epochs_leave_the_network_as_it_was(self, small_space, small_data):
        network = self.network(small_space)
        before = network.weights()
        found = train_network(network, small_data, NONE, Recipe(epochs=0), seed=0)
        assert (found.epochs, found.validation) == (0, evaluate(network, small_data.validation))
        assert all(np.array_equal(before[n], v) for n, v in network.weights().items())

    def test_a_last_batch_of_one_image_is_left_out(self, small_space, make_split):
        """Batch norm has no variance of one value; 16 images in batches of 5 leave one over."""
        data = SearchData(make_split(16), make_split(6, 1))
        network = self.network(small_space)
        sizes = []
        network.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])) if m.training else None)
        train_network(network, data, NONE, Recipe(epochs=1, batch_size=5), seed=0)
        assert sizes == [5, 5, 5]
        assert all(np.isfinite(v).all() for v in network.weights().values())

    def test_every_image_is_seen_once_an_epoch_in_another_order(self, make_split):
        split = make_split(20)
        images = np.arange(20, dtype=np.float32)[:, None] * np.ones((1, 6), np.float32)
        data = SearchData(Split(images, split.labels), Split(images[:6], split.labels[:6]))
        space = make_space("chain(input=(6,), classes=3, kind='dense', layers=1, widths=(4,), activations=('relu',))")
        network = to_torch(simplify(space.decode((0, 0, 0))))
        seen = []
        network.register_forward_pre_hook(lambda m, args: seen.extend(args[0][:, 0].tolist()) if m.training else None)
        train_network(network, data, BOTH, Recipe(epochs=2, batch_size=7), seed=0)
        first, second = seen[:20], seen[20:]
        assert sorted(first) == sorted(second) == list(range(20))
        assert first != second != sorted(second)
