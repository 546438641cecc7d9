"""Trees kept as arrays against scikit-learn's own predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from hwnas.regress.boosted_trees import BoostedTrees, grow_trees


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 7, 200])
def test_they_predict_as_their_teacher(seed, size):
    rng = np.random.default_rng(seed)
    x, new = rng.standard_normal((size, 4)), rng.standard_normal((50, 4)) * 3
    y = np.sin(x[:, 0]) + x[:, 1] ** 2
    ours = BoostedTrees.from_json(json.loads(json.dumps(grow_trees(x, y, trees=20, seed=seed).to_json())))
    theirs = GradientBoostingRegressor(n_estimators=20, max_depth=4, learning_rate=0.1, random_state=seed).fit(x, y)
    for points in (x, new):
        assert ours.predict(points) == pytest.approx(theirs.predict(points), rel=1e-9, abs=1e-12)
    assert ours.predict(new[:0]).shape == (0,)


@pytest.mark.parametrize(
    "tree",
    [
        {"feature": [0], "threshold": [0.0], "left": [0], "right": [0], "value": [1.0]},  # would go round for ever
        {"feature": [0, -2], "threshold": [0.0, 0.0], "left": [1, -1], "right": [9, -1], "value": [1.0, 1.0]},
        {"feature": [], "threshold": [], "left": [], "right": [], "value": []},
        {"feature": [-2], "threshold": [], "left": [-1], "right": [-1], "value": [1.0]},
    ],
)
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises(ValueError, match=r"tree|children"):
        BoostedTrees.from_json({"base": 0.0, "trees": [tree]})
