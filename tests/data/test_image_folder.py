"""Folders of images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from forms import (
    image_folder,
    jpeg_bytes,
    refused,
    splits,
    stored,
)
from PIL import Image

from hwnas.data import Augmentation, load_data


@pytest.mark.parametrize("ext", ["png", "jpg", "JPEG"])
def test_image_folders_with_a_test_folder(tmp_path: Path, ext: str) -> None:
    image_folder(tmp_path, ext=ext)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "train" / ".cache").mkdir()
    data = load_data(str(tmp_path))
    assert (data.classes, data.input, data.name) == (("ant", "bee"), (3, 8, 9), tmp_path.name)
    assert [len(s) for s in splits(data)] == [10, 2, 12]
    red = stored(data.test.split, data)[:, 4, 4, 0]
    expected = [110 + 50 * k + 5 * i for k in range(2) for i in range(6)]
    np.testing.assert_allclose(red, expected, atol=0.01 if ext == "png" else 6)
    np.testing.assert_array_equal(data.test.split.labels, [0] * 6 + [1] * 6)
    assert data.augmentation == Augmentation(flip=True, shift=1)


def test_image_folders_by_class_alone_are_split_in_three(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path, parts=("",), n=10, mode="L")))
    assert data.input == (1, 8, 9)
    assert [len(s) for s in splits(data)] == [12, 4, 4]
    shades = np.sort(np.concatenate([stored(s, data)[:, 4, 4, 0] for s in splits(data)]))
    np.testing.assert_allclose(shades, np.sort([10 + 50 * k + 5 * i for k in range(2) for i in range(10)]), atol=0.01)
    assert not data.augmentation.flip


def test_one_coloured_class_makes_all_images_coloured(tmp_path: Path) -> None:
    image_folder(tmp_path, parts=("",), mode="L")
    Image.new("RGB", (9, 8), (1, 2, 3)).save(tmp_path / "bee" / "0.png")
    assert load_data(str(tmp_path)).input == (3, 8, 9)


def test_bad_image_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("is empty", tmp_path / "empty")
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.new("L", (4, 4)).save(loose / "a.png")
    refused("must be labelled.*images in no class", loose)
    single = image_folder(tmp_path / "single", parts=("",))
    for file in (single / "bee").iterdir():
        file.unlink()
    refused("two classes or more; got 'ant alone'", single)
    Image.new("L", (4, 4)).save(single / "bee" / "a.png")
    refused("3 training images of each class or more; got '1 of bee'", single)
    refused("one of train and test alone", image_folder(tmp_path / "half", parts=("train",)))
    foreign = image_folder(tmp_path / "foreign")
    (foreign / "test" / "bee").rename(foreign / "test" / "wasp")
    refused("class that training lacks; got 'wasp'; known: ant, bee", foreign)
    bare = image_folder(tmp_path / "bare", parts=("",))
    for file in bare.glob("*/*"):
        file.unlink()
    refused("is empty", bare)


@pytest.mark.parametrize("kind", ["junk", "truncated", "empty", "gif", "16 bits"])
def test_broken_images_are_named(tmp_path: Path, kind: str) -> None:
    image_folder(tmp_path, parts=("",))
    bad = tmp_path / "bee" / "3.png"
    if kind == "16 bits":
        for file in (tmp_path / "bee").iterdir():
            Image.fromarray(np.full((8, 9), 300, np.uint16)).save(file)
        refused("8 bits a channel", tmp_path)
        return
    whole = jpeg_bytes(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    gif = io.BytesIO()
    Image.new("L", (4, 4)).save(gif, "GIF")
    bad.write_bytes({"junk": b"x" * 99, "truncated": whole[:600], "empty": b"", "gif": gif.getvalue()}[kind])
    assert str(bad) in refused("no image that can be opened", tmp_path)
