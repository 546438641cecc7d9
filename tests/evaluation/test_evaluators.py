"""Evaluators: decided by their setting alone, honest about what they refuse, and right where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

from hwnas.data import Augmentation, SearchData, Split
from hwnas.errors import UserError
from hwnas.evaluation.evaluator import Setting, find_evaluator, make_evaluator
from hwnas.evaluation.training_choices import OPTIONS, parse_training, training_key, training_of, with_training_choices
from hwnas.ir.simplify import simplify
from hwnas.lower.torch import to_torch
from hwnas.plugins import known
from hwnas.search.admission import Admission, Traits
from hwnas.search.inner import search_additive
from hwnas.search.strategy import Trial, make_strategy
from hwnas.spaces import make_space
from hwnas.supernet.evaluate import evaluate
from hwnas.supernet.race import Race
from hwnas.supernet.supernet import Supernet
from hwnas.supernet.tally import Evaluation
from hwnas.supernet.train import Recipe, train_network

SPACE = make_space("chain(kind='dense',input=(6,),classes=3,layers=2,widths=(4,8),activations=('relu','tanh'))")
KNOWN = [((0, 0, 0, 0, 0, 0), 0.2), ((0, 1, 0, 1, 0, 1), 0.5), ((0, 0, 1, 1, 1, 0), 0.4), ((0, 1, 1, 1, 1, 1), 0.8)]
TEXTS = {
    "cross_validation": "cross_validation(folds=3,epochs=2,batch_size=8)",
    "predictor": f"predictor(known={KNOWN})",
    "short_training": "short_training(epochs=2,batch_size=8)",
    "supernet": "supernet",
    "training": "training(epochs=3,batch_size=8)",
    "zero_cost": "zero_cost(proxies=('naswot','synflow'),batch_size=8)",
}
GENOTYPES = [(0, 1, 0, 1, 0, 1), (0, 0, 1, 0, 0, 0), (0, 1, 1, 1, 1, 0)]


def split(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return Split((rng.standard_normal((count, 6)) + 2 * np.eye(3, 6)[labels]).astype(np.float32), labels.astype(np.int64))


def setting(space=SPACE) -> Setting:
    return Setting(space, SearchData(split(30, 0), split(15, 1)), Augmentation(False, 0), 0, Supernet(space, 0))


@pytest.mark.parametrize("name", known("hwnas.evaluation.evaluators"))
class TestEveryEvaluator:
    def test_the_result_depends_on_the_genotype_alone(self, name):
        forth = make_evaluator(TEXTS[name], setting())
        first = [forth.evaluate(g) for g in GENOTYPES]
        back = make_evaluator(TEXTS[name], setting())
        torch.manual_seed(123)
        np.random.seed(5)
        assert [back.evaluate(g) for g in reversed(GENOTYPES)][::-1] == first
        assert first[0] != first[1]
        assert all(np.isfinite(list(row.values())).all() for row in first)

    def test_a_group_is_worth_what_its_trials_are_and_the_same_again(self, name):
        evaluator = make_evaluator(TEXTS[name], setting())
        trials = [Trial(g, f) for g, f in zip(GENOTYPES, (1.0, 0.5, 1.0), strict=True)]
        found = evaluator.evaluate_many(trials)
        assert found == make_evaluator(TEXTS[name], setting()).evaluate_many(trials)
        for trial, row in zip(trials, found, strict=True):
            assert row == pytest.approx(evaluator.evaluate(trial.genotype, trial.fidelity), rel=1e-5)
        assert evaluator.evaluate_many([]) == []
        assert evaluator.together >= 1

    def test_needs_a_supernet_only_if_it_says_so_and_may_be_made_before_that_is_trained(self, name):
        where = setting()
        cls = find_evaluator(TEXTS[name])
        if not cls.needs_supernet:
            bare = Setting(where.space, where.data, where.augmentation, 0)
            assert make_evaluator(TEXTS[name], bare).evaluate(GENOTYPES[0]) == make_evaluator(TEXTS[name], where).evaluate(
                GENOTYPES[0]
            )
            return
        early = make_evaluator(TEXTS[name], where)
        with torch.no_grad():
            for parameter in where.supernet.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert early.evaluate(GENOTYPES[0]) == make_evaluator(TEXTS[name], where).evaluate(GENOTYPES[0])

    def test_sees_training_if_and_only_if_it_says_so(self, name):
        space = with_training_choices(SPACE, {"learning_rate": (0.001, 0.5)})
        text = (
            TEXTS[name] if name != "predictor" else f"predictor(known={[((*g, i % 2), a) for i, (g, a) in enumerate(KNOWN)]})"
        )
        evaluator = make_evaluator(text, setting(space))
        found = [evaluator.evaluate((*GENOTYPES[0], rate)) for rate in (0, 1)]
        assert (found[0] != found[1]) == evaluator.sees_training

    def test_a_genotype_of_another_space_and_an_unknown_argument_are_refused(self, name):
        with pytest.raises(UserError):
            make_evaluator(TEXTS[name], setting()).evaluate((0, 9, 0, 0, 0, 0))
        with pytest.raises(UserError, match="no argument 'speed'"):
            make_evaluator(f"{name}(speed=3)", setting())

    def test_works_with_training_choices(self, name):
        space = with_training_choices(SPACE)
        tail = (1, 0, 0, 2, 1)
        text = TEXTS[name] if name != "predictor" else f"predictor(known={[((*g, *tail), a) for g, a in KNOWN]})"
        evaluator = make_evaluator(text, setting(space))
        assert evaluator.evaluate((*GENOTYPES[0], *tail))
        assert evaluator.images_passed() >= 0


def test_metrics_are_those_of_sklearn():
    arch = simplify(SPACE.decode(GENOTYPES[0]))
    network = to_torch(arch, seed=3)
    data = split(33, 7)
    found = evaluate(network, data)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(data.images))
    predicted, right = logits.argmax(1).numpy(), data.labels
    average = {"average": "macro", "zero_division": 0.0}
    assert found.accuracy == pytest.approx(accuracy_score(right, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(right, predicted, **average))
    assert found.precision == pytest.approx(precision_score(right, predicted, **average))
    assert found.recall == pytest.approx(recall_score(right, predicted, **average))
    assert found.loss == pytest.approx(log_loss(right, logits.softmax(1).numpy()), rel=1e-5)


@pytest.mark.parametrize("front", [False, True])
def test_a_race_leaves_estimates_unless_a_front_is_sought(front, monkeypatch):
    races = []

    def half_way(supernet, archs, data, *, race, **rest):
        races.append(race)
        whole = len(data.validation)
        return [Evaluation(0.5, 0.8, 0.8, 0.8, 0.8, images) for images in (whole // 2, whole)]

    monkeypatch.setattr("hwnas.evaluation.evaluators.supernet.evaluate_many", half_way)
    evaluator = make_evaluator("supernet(race=0.02)", replace(setting(), front=front))
    found = evaluator.evaluate_many([Trial(GENOTYPES[0]), Trial(GENOTYPES[1])])
    assert [row["complete"] for row in found] == [0, 1]
    assert races == [None if front else Race(0.02)]


def test_strategies_say_whether_they_seek_a_front():
    admission = Admission(SPACE, lambda g: 0.0, GENOTYPES[0], lambda g: Traits(str(g), {"macs": 1.0}))
    texts = {"nsga2": True, "auto": False, "auto(front='macs')": True, "bayesian(front='macs')": True, "evolution": False}
    assert {text: make_strategy(text, admission, 0).seeks_front for text in texts} == texts


def test_training_is_the_training_of_the_network():
    where = setting()
    found = make_evaluator("training(epochs=4,batch_size=8,learning_rate=0.05)", where).evaluate(GENOTYPES[0], 0.5)
    network = to_torch(simplify(SPACE.decode(GENOTYPES[0])), seed=0)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.05)
    expected = train_network(network, where.data, where.augmentation, recipe, seed=0).validation
    assert (found["accuracy"], found["loss"]) == (expected.accuracy, expected.loss)


def test_folds_leave_out_every_image_once(monkeypatch):
    left_out, sizes = [], []

    def watched(network, data, augmentation, recipe, *, seed):
        left_out.extend(map(tuple, data.validation.images.tolist()))
        sizes.append((len(data.train), len(data.validation)))
        assert sorted(np.bincount(data.validation.labels)) == [5, 5, 5]
        return train_network(network, data, augmentation, recipe, seed=seed)

    monkeypatch.setattr("hwnas.evaluation.evaluators.cross_validation.train_network", watched)
    where = setting()
    found = make_evaluator("cross_validation(folds=3,epochs=1,batch_size=8)", where).evaluate(GENOTYPES[0])
    everything = np.concatenate([where.data.train.images, where.data.validation.images])
    assert sorted(left_out) == sorted(map(tuple, everything.tolist()))
    assert sizes == [(30, 15)] * 3
    assert found["accuracy_deviation"] >= 0


@pytest.mark.parametrize(
    "text", ["cross_validation(folds=1)", "cross_validation(folds=16)", "predictor", "predictor(known=[((0,),1.0)]*4)"]
)
def test_arguments_that_do_not_fit_are_refused(text):
    with pytest.raises(UserError):
        make_evaluator(text, setting())


@pytest.mark.parametrize("fidelity", [0.0, -1.0, 1.01])
def test_a_fidelity_out_of_range_is_refused(fidelity):
    with pytest.raises(UserError):
        make_evaluator("short_training", setting()).evaluate(GENOTYPES[0], fidelity)


def test_the_supernet_evaluator_needs_one():
    where = setting()
    with pytest.raises(UserError, match="needs a supernet"):
        make_evaluator("supernet", Setting(where.space, where.data, where.augmentation))


def test_the_predictor_finds_an_additive_accuracy_and_feeds_the_inner_search():
    rng = np.random.default_rng(0)
    worth = [rng.uniform(0, 0.1, len(c.options)) for c in SPACE.choices]
    truth = lambda g: 0.2 + sum(row[o] for row, o in zip(worth, g, strict=True))  # noqa: E731
    import random

    draws = random.Random(0)
    known_pairs = [(g, truth(g)) for g in (SPACE.sample(draws) for _ in range(60))]
    predictor = make_evaluator(f"predictor(known={known_pairs!r})".replace("np.float64", ""), setting())
    for genotype in (SPACE.sample(draws) for _ in range(10)):
        assert predictor.evaluate(genotype)["accuracy"] == pytest.approx(truth(genotype), abs=0.01)
    tables = predictor.tables()
    for genotype in GENOTYPES:
        summed = sum(table[o, 0] for table, o in zip(tables, genotype, strict=True))
        assert summed == pytest.approx(predictor.evaluate(genotype)["accuracy"], rel=1e-9)
    best = search_additive(SPACE, [-t for t in tables], objectives=1)
    top = tuple(int(np.argmax(row)) for row in worth)
    assert best.exact
    assert truth(best.best) == pytest.approx(truth(top), abs=0.01)


def test_training_choices_change_the_recipe_and_nothing_of_the_arch():
    space = with_training_choices(SPACE)
    assert space.size == SPACE.size * 4 * 3 * 3 * 3 * 2
    genotype = (*GENOTYPES[0], 3, 0, 2, 1, 0)
    assert space.decode(genotype) == SPACE.decode(GENOTYPES[0])
    recipe, augmentation = training_of(space, genotype, Recipe(epochs=40), Augmentation(True, 4))
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (0.3, 1e-5, 128, 20)
    assert augmentation == Augmentation(True, 2)
    assert training_of(space, (*genotype[:-2], 0, 1), Recipe(), Augmentation(True, 4))[1] == Augmentation(False, 0)
    assert training_of(space, genotype, Recipe(epochs=1), Augmentation(True, 4), 0.1)[0].epochs == 1
    plain = training_of(SPACE, GENOTYPES[0], Recipe(), Augmentation(True, 4))
    assert plain == (Recipe(), Augmentation(True, 4))
    assert training_key(space, genotype) == "learning_rate=0.3,weight_decay=1e-05,batch_size=128,augmentation=0.5,epochs=0.5"
    assert training_key(SPACE, GENOTYPES[0]) == ""


def test_training_choices_are_searched_by_a_strategy_that_knows_nothing_of_them():
    """The best rate is found by the inner search from a table of all choices together."""
    space = with_training_choices(SPACE, {"learning_rate": (0.01, 0.1), "epochs": (1.0,)})
    tables = [np.zeros((len(c.options), 1)) for c in space.choices]
    tables[6][:, 0] = (1.0, -1.0)
    assert search_additive(space, tables, objectives=1).best[6] == 1


@pytest.mark.parametrize(
    "options",
    [{"speed": (1.0,)}, {"learning_rate": ()}, {"learning_rate": (0.0,)}, {"batch_size": (2.5,)}, {"batch_size": (1,)},
     {"learning_rate": (0.1, 0.1)}, {"learning_rate": (float("inf"),)}, {"epochs": (float("nan"),)},
     {"augmentation": (1.5,)}, {"epochs": (0.0,)}, {"weight_decay": (-1.0,)}],
)  # fmt: skip
def test_training_choices_out_of_range_are_refused(options):
    with pytest.raises(UserError):
        with_training_choices(SPACE, options)


def test_training_choices_are_read_from_text():
    assert parse_training([]) == {}
    assert parse_training(["epochs", "learning_rate=0.1, 2e-1"]) == {"learning_rate": (0.1, 0.2), "epochs": (0.5, 1.0)}
    assert (
        parse_training(["all", "batch_size=16"]) == parse_training(["batch_size=16", "all"]) == {**OPTIONS, "batch_size": (16,)}
    )
    options = [c.options for c in with_training_choices(SPACE, parse_training(["batch_size=16,32"])).choices]
    assert options[-1] == ("16", "32")
    for text in ("speed", "learning_rate=", "learning_rate=fast", "", "all=3", "=1"):
        with pytest.raises(UserError) as caught:
            with_training_choices(SPACE, parse_training([text]))
        assert "\n" not in str(caught.value)


def test_every_option_of_training_is_in_range():
    with_training_choices(SPACE, OPTIONS)
