"""load_data: what every form of data has in common, the digits, and the real files."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import (
    REAL,
    ROOT,
    image_folder,
    jpeg_pair,
    mnist,
    needs_real,
    refused,
    splits,
    stored,
)
from PIL import Image
from sklearn.datasets import load_digits

from hwnas.data import Augmentation, SearchData, TestData, load_data


def test_digits_are_scikit_learns_each_once() -> None:
    data, reference = load_data("digits"), load_digits()
    assert (data.name, data.input, data.classes) == ("digits", (1, 8, 8), tuple("0123456789"))
    images = np.concatenate([stored(s, data) for s in splits(data)]).round().astype(int).reshape(-1, 64)
    labels = np.concatenate([s.labels for s in splits(data)])
    rows = np.column_stack([images, labels])
    expected = np.column_stack([reference.data.astype(int), reference.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_digits_are_split_60_20_20_by_class() -> None:
    data = load_data("digits")
    total = np.bincount(load_digits().target)
    for split, part in zip(splits(data), (0.6, 0.2, 0.2), strict=True):
        assert len(split) == pytest.approx(1797 * part, abs=2)
        assert np.abs(np.bincount(split.labels) - total * part).max() < 2
    assert data.augmentation == Augmentation(flip=False, shift=1)


def test_the_seed_decides_the_splits() -> None:
    first, again, other = load_data("digits", seed=3), load_data("digits", seed=3), load_data("digits", seed=4)
    for a, b, c in zip(splits(first), splits(again), splits(other), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert not np.array_equal(a.labels, c.labels)


def test_normalisation_comes_from_the_train_split() -> None:
    data = load_data("digits")
    assert data.search.train.images.mean() == pytest.approx(0, abs=1e-4)
    assert data.search.train.images.std() == pytest.approx(1, abs=1e-4)
    raw = stored(data.search.train, data).round()
    assert data.mean == pytest.approx((raw.mean(),), abs=1e-4)
    assert data.std == pytest.approx((raw.std(),), abs=1e-4)


def test_a_limit_leaves_the_test_split_as_it_is() -> None:
    whole, limited = load_data("digits"), load_data("digits", limit=200)
    assert len(limited.search.train) + len(limited.search.validation) == 200
    np.testing.assert_array_equal(limited.test.split.labels, whole.test.split.labels)
    both = load_data("digits", limit=200, test_limit=50)
    assert np.bincount(both.test.split.labels, minlength=10).min() >= 4
    assert len(both.test.split) == 50


def test_a_search_cannot_reach_the_test_split() -> None:
    data = load_data("digits", limit=100)
    assert {f.name for f in fields(SearchData)} == {"train", "validation"}
    assert isinstance(data.search, SearchData)
    assert isinstance(data.test, TestData)
    assert not isinstance(data.search, TestData)
    for split in splits(data):
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int64)
        assert split.images.flags.c_contiguous
        assert split.images.shape == (len(split), *data.input)


def test_the_import_is_lean() -> None:
    code = "import sys, hwnas.data; print({'torch', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def test_size_resizes_every_form(tmp_path: Path) -> None:
    assert load_data("digits", size=12, limit=60).input == (1, 12, 12)
    assert load_data(str(mnist(tmp_path / "a.npz", shape=(6, 5, 3))), size=4).input == (3, 4, 4)
    assert load_data(str(image_folder(tmp_path / "images")), size=10).input == (3, 10, 10)
    assert load_data(str(jpeg_pair(tmp_path / "jpeg")), size=16).input == (3, 16, 16)


@pytest.mark.parametrize("text", ["cifar", "", " ", "no/such/file.npz", "~nobody-here/x", "nul\0l", "two\nlines"])
def test_unknown_data_lists_what_is_known(text: str) -> None:
    message = refused("unknown data", text)
    assert "digits" in message
    assert "x_train" in message
    assert "CIFAR-10" in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": -1}, "seed"),
        ({"size": 0}, "image size"),
        ({"size": 10**6}, "image size"),
        ({"limit": 0}, "limit must be positive"),
        ({"limit": 19}, "limit must leave.*got 19; the least is 20"),
        ({"test_limit": 9}, "test_limit must leave.*the least is 10"),
        ({"validation": 0.0}, "share of validation"),
        ({"validation": 0.9}, "share of validation"),
        ({"validation": float("nan")}, "share of validation"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    refused(match, "digits", **options)


@needs_real
def test_the_real_mnist() -> None:
    data = load_data(str(REAL / "mnist.npz"), limit=500)
    assert (data.input, len(data.classes)) == ((1, 28, 28), 10)
    assert [len(s) for s in splits(data)] == [400, 100, 10_000]
    assert data.augmentation == Augmentation(flip=False, shift=3)
    reference = np.load(REAL / "mnist.npz")
    np.testing.assert_array_equal(stored(data.test.split, data)[..., 0].round().astype(np.uint8), reference["x_test"])


@needs_real
def test_the_real_cifar10() -> None:
    data = load_data(str(REAL / "cifar10_jpeg_train.npz"), limit=300, test_limit=100)
    assert (data.name, data.input) == ("cifar10_jpeg", (3, 32, 32))
    assert [len(s) for s in splits(data)] == [240, 60, 100]
    assert data.augmentation == Augmentation(flip=True, shift=4)
    file = np.load(REAL / "cifar10_jpeg_test.npz")
    assert data.classes == tuple(file["classes"])
    blob, offsets, labels = file["jpeg"].tobytes(), file["offsets"], file["labels"]
    known = {}
    for i in range(len(labels)):
        image = Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]])).convert("RGB")
        known[image.tobytes()] = labels[i]
    found = [known[image.tobytes()] for image in stored(data.test.split, data).round().astype(np.uint8)]
    np.testing.assert_array_equal(found, data.test.split.labels)
