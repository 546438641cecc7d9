"""Images that are stored as JPEG or PNG files, one by one: decoded with Pillow, and only those that are chosen."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.data.source import Array, Labels, Pile, Source, Tick, checked_labels, missing_class
from hwnas.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY = ("1", "L", "LA")
TICK = 256  # images between two reports


@dataclass(frozen=True)
class Encoded:
    """Where encoded images come from: the bytes of image i, and how to call it in an error."""

    fetch: Callable[[int], bytes]
    name: Callable[[int], str]


@dataclass(frozen=True)
class Look:
    """What every image is turned into: a Pillow mode (L or RGB), height, width."""

    mode: str
    height: int
    width: int


def common_look(images: Encoded, labels: Labels, size: int | None) -> Look:
    """The size of the first image, or `size`; grey if the first image of every class is."""
    first = _open(images, 0)
    height, width = (first.height, first.width) if size is None else (size, size)
    grey = all(_open(images, int(i)).mode in GREY for i in np.unique(labels, return_index=True)[1])
    return Look("L" if grey else "RGB", height, width)


def encoded_pile(images: Encoded, labels: Labels, look: Look) -> Pile:
    def read(indices: Labels, tick: Tick) -> Array:
        decoded = np.empty((len(indices), look.height, look.width, len(look.mode)), np.uint8)
        for start in range(0, len(indices), TICK):
            part = indices[start : start + TICK]
            for row, index in enumerate(part, start):
                decoded[row] = _decode(images, int(index), look)
            tick(len(part))
        return decoded

    return Pile(labels, read)


def _decode(images: Encoded, index: int, look: Look) -> NDArray[np.uint8]:
    from PIL.Image import Resampling

    image = _open(images, index)
    try:
        image = image.convert(look.mode)
        if image.size != (look.width, look.height):
            image = image.resize((look.width, look.height), Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders raise whatever their formats do
        raise _broken(images, index, error) from error
    return np.asarray(image, np.uint8).reshape(look.height, look.width, len(look.mode))


def _open(images: Encoded, index: int) -> Image:
    """The image with its header read, its pixels not yet."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(images.fetch(index)), formats=("JPEG", "PNG"))
    except Exception as error:
        raise _broken(images, index, error) from error
    if image.mode.startswith(("I", "F")):
        got = f"mode {image.mode} in {images.name(index)}"
        raise UserError("an image must have 8 bits a channel", got=got, remedy="convert it")
    return image


def _broken(images: Encoded, index: int, error: Exception) -> UserError:
    rule = f"{images.name(index)} is no image that can be opened"
    reason = str(error).split("<_io")[0].strip() or type(error).__name__
    return UserError(rule, got=reason, remedy="repair or delete it; JPEG and PNG are read")


def read_image_folder(folder: Path, size: int | None) -> Source:
    """`train/<class>/*` and `test/<class>/*`, or `<class>/*` alone."""
    train, test = folder / "train", folder / "test"
    if train.is_dir() != test.is_dir():
        remedy = "give both, or name the folder whose subfolders are the classes"
        got = "train" if train.is_dir() else "test"
        raise UserError(f"{folder} holds one of train and test alone", got=got, remedy=remedy)
    root = train if train.is_dir() else folder
    classes = tuple(sorted(_subfolders(root)))
    if not classes:
        loose = any(p.suffix.lower() in SUFFIXES for p in root.iterdir())
        got = "images in no class" if loose else "no subfolders"
        raise UserError(f"{root} must be labelled: a subfolder of images per class", got=got)
    images, labels = _gather(root, classes, classes)
    look = common_look(images, labels, size)
    pile = encoded_pile(images, labels, look)
    name = folder.resolve().name
    if root is folder:
        return Source(name, classes, pile, None, natural=look.mode == "RGB")
    tested = sorted(_subfolders(test))
    foreign = [folder for folder in tested if folder not in classes]
    if foreign:
        raise missing_class(str(test), foreign[0], classes)
    held_out = encoded_pile(*_gather(test, tested, classes), look)
    return Source(name, classes, pile, held_out, natural=look.mode == "RGB")


def _gather(root: Path, subfolders: Iterable[str], classes: tuple[str, ...]) -> tuple[Encoded, Labels]:
    paths: list[Path] = []
    labels: list[int] = []
    for name in subfolders:
        found = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        paths += found
        labels += [classes.index(name)] * len(found)
    known = checked_labels(np.asarray(labels, np.int64), len(paths), str(root), len(classes))
    return Encoded(lambda i: paths[i].read_bytes(), lambda i: str(paths[i])), known


def _subfolders(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "." and p.name != "__MACOSX"]
