"""What the rest of the house sees of data: splits that are kept apart by type, and how they were normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Split:
    """Normalised images, float32 [n, channels, height, width] or [n, features], and labels, int64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class SearchData:
    """All that a search may see. There is no way from here to the test split."""

    train: Split
    validation: Split


@dataclass(frozen=True, eq=False)
class TestData:
    """What the reported accuracy comes from, and nothing else does."""

    __test__ = False  # the name makes pytest look for tests in it

    split: Split


@dataclass(frozen=True)
class Augmentation:
    """What suits the data: mirroring left to right, and shifting by up to so many pixels each way."""

    flip: bool
    shift: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named, split, normalised data. `input` is (channels, height, width) or (features,).

    `mean` and `std` hold a number per channel or feature, taken from the train split, in units of the stored values:
    an image is `(stored - mean) / std`.
    """

    name: str
    classes: tuple[str, ...]
    input: tuple[int, ...]
    search: SearchData
    test: TestData
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
