"""Archives of arrays, in the form of mnist.npz."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forms import (
    Runs,
    balanced,
    mnist,
    refused,
    splits,
    stored,
)

from hwnas.data import load_data


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (7,)])
def test_arrays_of_every_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = mnist(tmp_path / "small.npz", shape=shape)
    data = load_data(str(path))
    arrays = np.load(path)
    channels = shape[2] if len(shape) == 3 else 1
    assert data.input == (shape if len(shape) == 1 else (channels, *shape[:2]))
    assert [len(s) for s in splits(data)] == [48, 12, 12]
    assert data.name == "small"
    assert data.augmentation.flip == (channels == 3)
    # A test split that the data brings is kept in its order.
    found = stored(data.test.split, data).reshape(12, -1)
    np.testing.assert_allclose(found, arrays["x_test"].reshape(12, -1), atol=1e-3)
    np.testing.assert_array_equal(data.test.split.labels, arrays["y_test"])


def test_floats_and_columns_of_labels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 4, 4))
    path = mnist(tmp_path / "a.npz", shape=(4, 4), x_train=values, y_train=balanced(60)[:, None].astype(np.int32))
    data = load_data(str(path))
    found = np.concatenate([stored(s, data) for s in splits(data)[:2]]).reshape(60, -1)
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(values.reshape(60, -1)[:, 0]), atol=1e-5)


def test_arrays_without_a_test_split_are_split_in_three(tmp_path: Path) -> None:
    data = load_data(str(mnist(tmp_path / "a.npz", x_test=None, y_test=None, classes=np.array(["a", "b", "c"]))))
    assert [len(s) for s in splits(data)] == [36, 12, 12]
    assert data.classes == ("a", "b", "c")


def test_constant_features_stay_finite(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    values[:, 1] = 0.1
    data = load_data(str(mnist(tmp_path / "a.npz", shape=(3,), x_train=values)))
    assert data.std[1] == 1
    assert np.abs(data.search.train.images[:, 1]).max() < 1e-6


def test_bad_arrays(tmp_path: Path) -> None:
    def bad(**changes: Any) -> Path:
        return mnist(tmp_path / "bad.npz", **changes)

    x = np.zeros((60, 6, 5), np.float32)
    x[7, 2, 2] = np.nan
    refused("must be finite.*image 7", bad(x_train=x))
    refused("must be finite", bad(x_train=np.full((60, 6, 5), 1e300)))
    refused("must be labelled", bad(y_train=None))
    refused("must be labelled", bad(y_test=None))
    refused("60 images and 59 labels", bad(y_train=balanced(59)))
    refused("60 images and 0 labels", bad(y_train=np.zeros(0)))
    refused("whole numbers", bad(y_train=balanced(60).astype(float)))
    refused("whole numbers", bad(y_train=np.eye(3, dtype=int)[balanced(60)]))
    refused("whole numbers", bad(y_train=np.int64(3)))
    refused("out of range; got -1", bad(y_train=balanced(60) - 1))
    refused("out of range; got 4000000000", bad(y_train=np.full(60, 4 * 10**9)))
    refused("out of range; got 2; the classes", bad(classes=np.array(["a", "b"])))
    refused("out of range; got 5; the classes of training are 0 to 2", bad(y_test=np.full(12, 5)))
    refused("two classes or more; got '0 alone'", bad(y_train=np.zeros(60, int), y_test=np.zeros(12, int)))
    refused("each class or more; got '0 of 0'", bad(y_train=balanced(60) + 1))
    refused("each class or more; got '2 of 1'", bad(y_train=np.repeat([0, 1, 2], [30, 2, 28])))
    refused("is empty", bad(n=0))
    refused("is empty", bad(tested=0))
    refused("1 or 3 channels.*store them last", bad(shape=(3, 6, 5)))
    refused("must hold numbers", bad(x_train=np.full((60, 4, 4), "a")))
    refused("must hold numbers", bad(x_train=np.zeros(60)))
    refused("one shape", bad(x_test=np.zeros((12, 6, 6), np.uint8)))
    refused("only images have a size; got '7 features'", bad(shape=(7,)), size=8)
    refused("known form", bad(x_train=None, y_train=None, x_test=None, y_test=None, other=np.zeros(3)))
    refused("must be a list of strings", bad(classes=np.arange(3)))


def test_corrupt_archives(tmp_path: Path) -> None:
    whole = mnist(tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "bad.npz"
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:500] + b"\0" * 400 + whole[900:]):
        path.write_bytes(content)
        refused("cannot be read as an .npz", path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    refused("cannot be read as an .npz", tmp_path / "single.npy")


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = np.empty(60, object)
    evil[:] = [Runs(os.mkdir, str(mark))] * 60
    refused("cannot be read as an .npz", mnist(tmp_path / "evil.npz", y_train=evil))
    assert not mark.exists()
