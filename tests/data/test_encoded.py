"""Archives of JPEG images against Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from forms import (
    balanced,
    jpeg_file,
    jpeg_pair,
    refused,
    splits,
    stored,
)
from PIL import Image

from hwnas.data import Augmentation, Dataset, load_data
from hwnas.errors import UserError


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 6)])
def test_jpeg_archives_are_decoded_as_pillow_does(tmp_path: Path, shape: tuple[int, ...]) -> None:
    jpeg_file(tmp_path / "toy_train.npz", shape=shape)
    blobs = jpeg_file(tmp_path / "toy_test.npz", n=9, shape=shape)
    for path in (tmp_path, tmp_path / "toy_train.npz"):
        data = load_data(str(path))
        assert (data.name, data.classes) == ("toy", ("ant", "bee", "cat"))
        assert [len(s) for s in splits(data)] == [24, 6, 9]
        reference = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in blobs])
        np.testing.assert_allclose(stored(data.test.split, data).squeeze(), reference, atol=1e-3)
        assert data.augmentation == Augmentation(flip=len(shape) == 3, shift=min(shape[:2]) // 8)


def test_jpeg_test_classes_are_matched_by_name(tmp_path: Path) -> None:
    jpeg_file(tmp_path / "train.npz")
    jpeg_file(tmp_path / "test.npz", n=9, classes=np.array(["cat", "ant", "bee"]))
    data = load_data(str(tmp_path / "train.npz"))
    np.testing.assert_array_equal(data.test.split.labels, np.array([2, 0, 1])[balanced(9)])
    assert data.name == tmp_path.name


def test_only_the_chosen_images_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    blobs = jpeg_file(path, n=60)
    reports: list[tuple[int, int]] = []

    def load() -> Dataset:
        return load_data(str(path), limit=12, test_limit=6, progress=lambda done, of: reports.append((done, of)))

    data = load()
    assert [len(s) for s in splits(data)] == [9, 3, 6]
    assert reports[-1] == (18, 18)
    assert reports == sorted(reports)
    # With all other images spoiled, it loads as before. The headers of the first three, one a class, are read too.
    chosen = {image.astype(np.uint8).tobytes() for s in splits(data) for image in stored(s, data).round()}
    number = [i for i, blob in enumerate(blobs) if Image.open(io.BytesIO(blob)).tobytes() in chosen]
    assert len(number) == 18
    kept = [blob if i in number or i < 3 else b"x" * len(blob) for i, blob in enumerate(blobs)]
    jpeg_file(path, n=60, jpeg=np.frombuffer(b"".join(kept), np.uint8))
    np.testing.assert_array_equal(load().search.train.images, data.search.train.images)
    with pytest.raises(UserError, match="no image that can be opened"):
        load_data(str(path))


def test_bad_jpeg_archives(tmp_path: Path) -> None:
    pair = jpeg_pair(tmp_path / "a")
    refused("named by its training file", pair / "toy_test.npz")
    jpeg_file(tmp_path / "alone_train.npz")
    refused("needs its test file", tmp_path / "alone_train.npz")
    refused("must be labelled", jpeg_pair(tmp_path / "b", labels=None))
    refused("30 images and 29 labels", jpeg_pair(tmp_path / "c", labels=balanced(29)))
    refused("out of range; got 7", jpeg_pair(tmp_path / "d", labels=np.full(30, 7)))
    refused("lacks offsets", jpeg_pair(tmp_path / "e", offsets=None))
    refused("must ascend", jpeg_pair(tmp_path / "f", offsets=np.arange(31)[::-1]))
    refused("must ascend", jpeg_pair(tmp_path / "g", offsets=np.arange(31) * 10**9))
    refused("no image that can be opened", jpeg_pair(tmp_path / "h", jpeg=np.zeros(10**5, np.uint8)))
    refused("must be bytes", jpeg_pair(tmp_path / "i", jpeg=np.zeros((10, 10))))
    refused("is empty", jpeg_pair(tmp_path / "j", offsets=np.array([0]), labels=balanced(0)))
    refused("two classes", jpeg_pair(tmp_path / "k", labels=np.zeros(30, int)))
    refused("must differ", jpeg_pair(tmp_path / "l", classes=np.array(["a", "a", "b"])))
    jpeg_file(tmp_path / "a" / "toy_test.npz", n=9, classes=np.array(["ant", "bee", "dog"]))
    assert "dog" in refused("class that training lacks", pair)
    jpeg_file(tmp_path / "a" / "more_train.npz")
    refused("exactly one training file", pair)
