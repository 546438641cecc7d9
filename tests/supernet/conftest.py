"""A small space and small random data that a network can learn something of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from hwnas.data import SearchData, Split
from hwnas.lower.torch import ArchModule
from hwnas.space import Space
from hwnas.spaces import make_space
from hwnas.supernet.supernet import Supernet


@pytest.fixture(scope="session")
def small_space() -> Space:
    return make_space(
        "mobilenet(input=(2,8,8), classes=3, stages=((8,2,2),), stem=8, first=8, head=16, kernels=(3,5), expansions=(3,), "
        "depths=(1,2), widths=(1.0,2.0))"
    )


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    """Images whose first pixels tell the class, through noise."""

    def make(count: int, seed: int = 0, classes: int = 3, dims: tuple[int, ...] = (2, 8, 8)) -> Split:
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % classes
        noise = rng.standard_normal((count, *dims))
        patterns = np.random.default_rng(99).standard_normal((classes, *dims))
        return Split((noise + patterns[labels]).astype(np.float32), labels.astype(np.int64))

    return make


@pytest.fixture(scope="session")
def small_data(make_split) -> SearchData:
    return SearchData(make_split(45, 0), make_split(24, 1))


@pytest.fixture(scope="session")
def state_of() -> Callable[[ArchModule | Supernet], dict[str, torch.Tensor]]:
    return lambda module: {name: value.clone() for name, value in module.state_dict().items()}
