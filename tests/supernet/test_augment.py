"""Augmentation against single images shifted and mirrored one by one in numpy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.data import Augmentation
from hwnas.supernet.train import augment


def variants(image: np.ndarray, flip: bool, shift: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every way in which one image may come out, by its bytes; [c, h, w]."""
    _, height, width = image.shape
    found = {}
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            moved = np.zeros_like(image)
            for row in range(height):
                for column in range(width):
                    if 0 <= row - down < height and 0 <= column - right < width:
                        moved[:, row, column] = image[:, row - down, column - right]
            for mirrored in (False, True) if flip else (False,):
                found[(moved[:, :, ::-1] if mirrored else moved).tobytes()] = (down, right, mirrored)
    return found


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.booleans(), st.integers(0, 3),
    st.integers(0, 1000),
)  # fmt: skip
def test_each_image_is_shifted_and_mirrored_on_its_own(n, channels, height, width, flip, shift, seed):
    images = np.random.default_rng(seed).standard_normal((n, channels, height, width)).astype(np.float32)
    found = augment(torch.from_numpy(images), Augmentation(flip, shift), torch.Generator().manual_seed(seed))
    assert found.shape == images.shape
    for before, after in zip(images, found.numpy(), strict=True):
        assert after.tobytes() in variants(before, flip, shift)


def test_every_shift_and_both_sides_come_equally_often():
    image = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    count = 100 * 50
    found = augment(
        torch.from_numpy(image).expand(count, -1, -1, -1), Augmentation(True, 2), torch.Generator().manual_seed(0)
    )  # fmt: skip
    names = variants(image, True, 2)
    seen = Counter(names[y.tobytes()] for y in found.numpy())
    assert len(seen) == 50
    chi2 = sum((n - 100) ** 2 / 100 for n in seen.values())
    assert chi2 < 49 + 5 * (2 * 49) ** 0.5


def test_is_decided_by_the_generator_and_leaves_its_input_alone():
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    a, b, c = (augment(images, Augmentation(True, 1), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(images, before)


@pytest.mark.parametrize("augmentation", [Augmentation(True, 3), Augmentation(False, 0)])
def test_features_are_left_as_they_are(augmentation):
    features = torch.randn(5, 7)
    assert torch.equal(augment(features, augmentation, torch.Generator()), features)
