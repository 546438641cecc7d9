"""What every file in hwnas/supernet/gradients must keep. A new strategy is tested by existing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hwnas.data import Augmentation, SearchData, Split
from hwnas.errors import UserError
from hwnas.lower.cost import op_macs_params
from hwnas.placements import placed_ops
from hwnas.plugins import known
from hwnas.space import Space
from hwnas.spaces import make_space
from hwnas.supernet.differentiable import CollapseWarning, GradientRecipe, search_in_stages
from hwnas.supernet.expected_latency import ExpectedLatency
from hwnas.supernet.gradient import make_gradient
from hwnas.supernet.supernet import Supernet

NAMES = known("hwnas.supernet.gradients")
TEXTS = [*NAMES, "darts(order=2)"]
SPACES = {
    "nasbench201": "nasbench201(input=(3,8,8),classes=3,channels=4,cells=1)",
    "darts": "darts(input=(3,8,8),classes=3,channels=2,cells=1)",
}
AUGMENTATION = Augmentation(flip=True, shift=1)
RECIPE = GradientRecipe(epochs=2, batch_size=8, steps=2, alpha_learning_rate=0.05)


def split(seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(24) % 3
    return Split((rng.standard_normal((24, 3, 8, 8)) + labels[:, None, None, None]).astype(np.float32), labels)


DATA = SearchData(split(0), split(1))


def searched(text: str, space: Space, recipe: GradientRecipe = RECIPE, seed: int = 0, **arguments):
    """The genotype, the loss curve and the last probabilities."""
    curve: list[float] = []
    last = []

    def told(done, total, losses, alphas):
        curve.extend(losses)
        last[:] = [p.detach() for p in alphas.probabilities()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        genotype = search_in_stages(
            lambda stage: Supernet(space, seed), DATA, AUGMENTATION, recipe, make_gradient(text, space), seed=seed,
            **{"progress": told, **arguments},
        )  # fmt: skip
    return genotype, curve, last


@pytest.fixture(params=SPACES)
def space(request) -> Space:
    return make_space(SPACES[request.param])


@pytest.mark.parametrize("text", TEXTS)
class TestEveryGradient:
    def test_derives_a_genotype_of_the_space_and_learns(self, text, space):
        genotype, curve, _ = searched(text, space)
        assert space.check(genotype) == genotype
        assert np.isfinite(curve).all()
        assert len(set(curve)) == len(curve)

    def test_is_decided_by_its_seed(self, text, space):
        first, second, other = (searched(text, space, seed=seed) for seed in (3, 3, 4))
        assert first[1] == second[1]
        assert first[0] == second[0]
        assert all(torch.equal(a, b) for a, b in zip(first[2], second[2], strict=True))
        assert first[1] != other[1]

    def test_continues_from_its_checkpoint_as_if_never_stopped(self, text, tmp_path):
        """Stopped after each epoch in turn, in every stage."""
        space = make_space(SPACES["nasbench201"])
        whole = searched(text, space)
        stages = make_gradient(text, space).stages

        class Stopped(Exception):  # noqa: N818
            pass

        for stop in range(1, RECIPE.epochs * stages + 1):
            folder = tmp_path / str(stop)
            folder.mkdir()
            curve: list[float] = []
            epochs = 0

            def progress(done, total, losses, alphas, curve=curve, stop=stop):
                nonlocal epochs
                curve.extend(losses)
                epochs += 1
                if epochs == stop:
                    raise Stopped

            with pytest.raises(Stopped):
                searched(text, space, checkpoint=folder, progress=progress)
            rest = searched(text, space, checkpoint=folder)
            assert curve + rest[1] == whole[1]
            assert rest[0] == whole[0]

    def test_refuses_the_checkpoint_of_another_search(self, text, tmp_path):
        searched(text, make_space(SPACES["darts"]), checkpoint=tmp_path)
        with pytest.raises(UserError, match="is not a checkpoint of this search"):
            searched(text, make_space(SPACES["nasbench201"]), checkpoint=tmp_path)

    def test_the_latency_term_makes_the_derived_network_faster(self, text, space):
        """Milliseconds from the multiply-accumulates of each placed op; the weight of the term says how much they count."""
        table = {placed: 1e-6 * op_macs_params(placed)[0] for placed in placed_ops(space)}
        latency = ExpectedLatency.of_ops(space, table)

        def milliseconds(weight: float) -> tuple[float, float]:
            recipe = GradientRecipe(epochs=8, batch_size=8, steps=3, alpha_learning_rate=0.3, latency_weight=weight)
            genotype, _, probabilities = searched(text, space, recipe, latency=latency)
            one_hot = [torch.tensor(row) for row in space.one_hot(genotype)]
            return float(latency.milliseconds(one_hot)), float(latency.milliseconds(probabilities))

        free, limited = milliseconds(0.0), milliseconds(30.0)
        assert limited[1] < free[1]
        assert limited[0] <= free[0]

    def test_a_weight_of_the_latency_without_a_table_is_refused(self, text):
        space = make_space(SPACES["nasbench201"])
        recipe = GradientRecipe(epochs=1, batch_size=8, steps=1, latency_weight=1.0)
        with pytest.raises(UserError, match="needs a latency table"):
            searched(text, space, recipe)
